// What nodes tell each other, as plain values. The net module turns them into protobuf and back; core and node never see
// protobuf. docs/protocol.md draws the conversations.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/clock.h"
#include "tessera/base/ids.h"
#include "tessera/core/merge_messages.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/segment_commit.h"

namespace tessera::core {

inline constexpr uint32_t kProtocolVersion = 2;
inline constexpr size_t kMaxReceiptsPerSync = 256;

// ---- registration ---------------------------------------------------------------------------------------------------

struct Registration {
  NodeId node;
  uint64_t incarnation = 0;      // random, new for every process: a restart is not a reconnect
  std::string address;           // host:port where peers reach it
  std::string device;            // "cpu", "cuda:0 NVIDIA H200"
  uint64_t memory_bytes = 0;
  std::string software;          // version, for people
  std::optional<StageIndex> wanted_stage;
  template <class A>
  void fields(A& a) {
    a("node", node)("incarnation", incarnation)("address", address)("device", device)(
        "memory_bytes", memory_bytes)("software", software)("wanted_stage", wanted_stage);
  }
};

enum class RegisterRefusal : uint8_t {
  kNone = 0,
  kProtocolVersion = 1,
  kRunFinished = 2,
  kFull = 3,
  kBadAddress = 4,
  kNotFitting = 5,  // no stage fits its memory
};

struct RegisterAnswer {
  RegisterRefusal refusal = RegisterRefusal::kNone;
  std::string message;           // what is wrong and how to mend it
  MinerIndex miner = kNoMiner;
  std::string session;           // 16 random bytes
  std::string run_id;            // 16 bytes
  std::string run_spec;          // encode(RunSpec)
  std::string data_plan;         // encode(DataPlan)
  NodeId lease_key;              // whose signature proves a lease: the orchestrator's
};

// ---- work -----------------------------------------------------------------------------------------------------------

struct Lease {
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  uint64_t counted_stages = 0;        // bit s: stage s has a counted gradient already and computes only its input gradient
  std::vector<MinerIndex> pathway;    // one miner a stage: a proposal
  uint32_t lifetime_ms = 0;
  bool repair = false;                // the head that held this attempt is gone: the stages that hold it go on with this one
  TimeMs expires_unix_ms = 0;         // by the orchestrator's clock
  Signature signature{};              // by the orchestrator over signed_bytes(); made when it is told
  template <class A>
  void fields(A& a) {
    a("microbatch", microbatch)("attempt", attempt)("counted_stages", counted_stages)("pathway", pathway)(
        "lifetime_ms", lifetime_ms)("repair", repair)("expires_unix_ms", expires_unix_ms);
  }
  // What the orchestrator signs. It travels with the microbatch: whoever is given it sees that this attempt was leased.
  std::string signed_bytes(const std::string& run_id) const {
    Encoder encoder;
    encoder.write(std::string("tessera lease 1"));
    encoder.write(run_id);
    encoder.write(microbatch);
    encoder.write(attempt);
    encoder.write(repair);
    encoder.write(counted_stages);
    encoder.write(pathway);
    encoder.write(expires_unix_ms);
    return encoder.take();
  }
};

// How a miner is doing, for the routing of its peers.
struct PeerHealth {
  uint32_t queued = 0;         // microbatches waiting for compute
  uint32_t capacity = 0;       // places for forwards that are free
  float microbatch_ms = 0;     // typically, forward + backward; 0: none yet
  template <class A> void fields(A& a) { a("queued", queued)("capacity", capacity)("microbatch_ms", microbatch_ms); }
};

// One miner's signed word on one microbatch: written when its backward pass is complete.
struct Receipt {
  uint64_t sequence = 0;        // from 1 within an incarnation, without gaps
  uint64_t incarnation = 0;
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  MinerIndex upstream = kNoMiner;
  MinerIndex downstream = kNoMiner;
  Epoch epoch = 0;
  uint64_t weight_version = 0;  // of forward and backward: a microbatch keeps the weights it began with
  bool accumulated = false;
  bool repaired = false;        // somewhere on its way another miner took over: left out of attribution if its neighbours say so too
  // The optimizer step this gradient goes into, counted from 0 within the incarnation; from 1 in one that began with the
  // state of a checkpoint, whose steps are all together its step 0.
  uint64_t local_step = 0;
  uint32_t order = 0;           // place within that step's sum
  Digest input_hash;            // activation received; zero at the head
  Digest output_hash;           // activation sent; zero at the tail
  Digest gradient_in_hash;      // boundary gradient received; zero at the tail
  Digest gradient_out_hash;     // boundary gradient sent; zero at the head
  float loss = 0;               // mean cross-entropy per token at the tail, else 0
  float forward_ms = 0;
  float backward_ms = 0;
  int64_t unix_ms = 0;
  Signature signature{};        // by the miner over encode() of everything above
  template <class A>
  void content(A& a) {
    a("sequence", sequence)("incarnation", incarnation)("miner", miner)("stage", stage)(
        "microbatch", microbatch)("attempt", attempt)("upstream", upstream)("downstream", downstream)(
        "epoch", epoch)("weight_version", weight_version)("accumulated", accumulated)(
        "repaired", repaired)("local_step", local_step)("order", order)("input_hash", input_hash)(
        "output_hash", output_hash)("gradient_in_hash", gradient_in_hash)(
        "gradient_out_hash", gradient_out_hash)("loss", loss)("forward_ms", forward_ms)(
        "backward_ms", backward_ms)("unix_ms", unix_ms);
  }
  template <class A>
  void fields(A& a) {
    content(a);
    a("signature", signature);
  }
  // What is signed: a label that names the purpose and the run, then the content.
  std::string signed_bytes(const std::string& run_id) const {
    Encoder encoder;
    encoder.write(std::string("tessera receipt 2"));
    encoder.write(run_id);
    const_cast<Receipt*>(this)->content(encoder);
    return encoder.take();
  }
};

// ---- the miner's report and its answer ------------------------------------------------------------------------------

enum class MinerPhase : uint8_t { kJoining = 0, kLoading = 1, kReady = 2, kDraining = 3 };
const char* name_of(MinerPhase phase);

struct CheckpointCommit {
  uint64_t id = 0;
  Digest object;                // the miner's LocalState (node/local_state.h)
  uint64_t local_steps = 0;
  uint64_t schedule_step = 0;
  uint64_t weight_version = 0;
  uint32_t accumulated = 0;     // microbatches in the partial gradient
  template <class A>
  void fields(A& a) {
    a("id", id)("object", object)("local_steps", local_steps)("schedule_step", schedule_step)(
        "weight_version", weight_version)("accumulated", accumulated);
  }
};

struct MinerStatus {
  MinerPhase phase = MinerPhase::kJoining;
  Epoch epoch = 0;
  uint64_t local_steps = 0;
  uint64_t schedule_step = 0;
  uint64_t weight_version = 0;
  uint32_t queued = 0;                 // microbatches waiting for compute
  uint32_t in_flight = 0;              // microbatches held
  float forward_ms = 0;                // of one microbatch, typically
  float backward_ms = 0;
  float gradient_norm = 0;
  uint64_t boundary_tensors_sent = 0;  // activations and gradients
  uint64_t peer_bytes_sent = 0;        // at the sockets to peers, as the kernel counts them
  uint64_t frames_refused = 0;
  uint64_t forwards = 0;               // computed by this process
  uint64_t recomputed = 0;             // of them those that another miner of the stage was given before
  uint64_t steps_lost = 0;             // local steps that died with the process before and were in no local checkpoint
  uint64_t payloads_stored = 0;        // boundary tensors in the blob store, for audits
  uint64_t payloads_dropped = 0;       // that had no room in the queue, or could not be stored
  uint64_t segment_copy_us = 0;        // that computing stood still while the states of commitments were copied
  template <class A>
  void fields(A& a) {
    a("phase", phase)("epoch", epoch)("local_steps", local_steps)("schedule_step", schedule_step)(
        "weight_version", weight_version)("queued", queued)("in_flight", in_flight)(
        "forward_ms", forward_ms)("backward_ms", backward_ms)("gradient_norm", gradient_norm)(
        "boundary_tensors_sent", boundary_tensors_sent)("peer_bytes_sent", peer_bytes_sent)(
        "frames_refused", frames_refused)("forwards", forwards)("recomputed", recomputed)(
        "steps_lost", steps_lost)("payloads_stored", payloads_stored)("payloads_dropped", payloads_dropped)(
        "segment_copy_us", segment_copy_us);
  }
};

// Everything in a report is idempotent: the miner repeats each part until the answer shows that it is known.
struct SyncRequest {
  MinerIndex miner = kNoMiner;
  uint64_t incarnation = 0;
  MinerStatus status;
  std::vector<Receipt> receipts;       // unacknowledged ones, oldest first, at most kMaxReceiptsPerSync
  std::vector<uint64_t> bad_receipts;  // found by the receiver: numbers of those that are not signed or not about the sender
  uint64_t lease_request = 0;          // number of the request; a new number asks for new leases
  uint32_t leases_wanted = 0;
  std::optional<UploadCommit> upload;
  std::vector<ShardCommit> shards;
  uint64_t sealed_heard = 0;           // of the newest directive
  std::vector<UnreadableResult> unreadable_results;  // at most kMaxUnreadableResults
  std::optional<MergeApplied> applied;
  std::optional<Digest> published_state;  // stage state of `status.epoch` that now lies in the blob store
  std::optional<CheckpointCommit> checkpoint;
  std::optional<SegmentCommit> segment;  // the newest, until it is known
  uint64_t peers_version = 0;          // of the peer table it has
  uint64_t spec_version = 0;           // of the run specification it follows; 0: the one of its registration
};

struct Peer {
  MinerIndex miner = kNoMiner;
  NodeId node;
  StageIndex stage = 0;
  std::string address;
  bool live = false;
  uint64_t incarnation = 0;     // of its process: another one holds nothing of what the one before was given
  template <class A>
  void fields(A& a) {
    a("miner", miner)("node", node)("stage", stage)("address", address)("live", live)("incarnation", incarnation);
  }
};

struct Assignment {
  StageIndex stage = 0;
  Epoch epoch = 0;
  Digest state;                 // stage state to start from; zero: initialise from the run's seed
  Digest local_state;           // resume: this miner's own state; zero: none
  uint64_t schedule_step = 0;   // where the learning-rate schedule stands
  std::vector<Peer> donors = {};  // replicas that hold `state` and give it away too, at most kMaxDonors
  template <class A>
  void fields(A& a) {
    a("stage", stage)("epoch", epoch)("state", state)("local_state", local_state)(
        "schedule_step", schedule_step)("donors", donors);
  }
};
inline constexpr size_t kMaxDonors = 8;

enum class RunPhase : uint8_t {
  kWaiting = 0,        // for the first miners_per_stage miners of every stage
  kRunning = 1,
  kPaused = 2,
  kDraining = 3,       // leases only what must be issued again; then a checkpoint
  kMerging = 4,        // all microbatches are done: the last merge of every stage
  kCheckpointing = 5,
  kStopped = 6,        // after a requested stop; can be resumed
  kFinished = 7,
  kRestaging = 8,      // the stages' states are cut and joined anew for other layer ranges
};
const char* name_of(RunPhase phase);

struct SyncAnswer {
  RunPhase phase = RunPhase::kWaiting;
  std::string reason;                        // why the miner has no work, for its log
  bool known = true;                         // false: this incarnation is not registered (any more); register again
  uint64_t receipts_acknowledged = 0;
  uint64_t lease_request = 0;                // the request these leases answer
  std::vector<Lease> leases;
  uint64_t peers_version = 0;
  std::optional<std::vector<Peer>> peers;    // if the miner's table is old
  std::optional<Assignment> assignment;      // until the miner is ready; of another stage: drain and join again there
  std::optional<MergeDirective> merge;
  bool publish_state = false;                // put the stage state of the current epoch into the blob store
  uint64_t checkpoint = 0;                   // id of the checkpoint to take part in; 0: none
  bool leave = false;                        // the run is over: stop
  bool drain = false;                        // finish what is in flight, then leave
  uint64_t spec_version = 0;                 // of the run specification in force
  std::optional<std::string> run_spec;       // encode(RunSpec), if the miner follows an older one
  uint64_t segment_known = 0;                // number of the newest commitment that is journalled
};

// ---- boundary frames ------------------------------------------------------------------------------------------------

enum class Direction : uint8_t { kForward = 0, kBackward = 1 };

// A parsed boundary frame (core/frame.h has its bytes).
struct Frame {
  uint64_t run = 0;             // first 8 bytes of the run id
  Epoch epoch = 0;              // of the sender, for information
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  uint16_t boundary = 0;        // k: between stage k and k + 1
  Direction direction = Direction::kForward;
  BoundaryKind kind = BoundaryKind::kAnchored;
  Codec codec = Codec::kInt4;
  uint32_t batch = 0;           // B
  uint32_t context = 0;         // T
  uint32_t rank = 0;            // r
  int32_t exponent = 0;
  uint64_t counted_stages = 0;  // as in the lease
  uint32_t lifetime_ms = 0;     // of the lease, what is left of it
  std::vector<MinerIndex> pathway;
  TimeMs lease_expires_unix_ms = 0;  // as in the lease; forward only, like its signature
  Signature lease_signature{};
  // How often each stage up to the receiver's has been given this attempt again, to another miner; the head by the
  // orchestrator. Of two frames of one microbatch the lexicographically greater is the newer.
  std::vector<uint8_t> repairs;
  std::vector<uint32_t> tokens; // B * (T + 1), forward only
  std::string payload;
};

// The receiver's answer to a frame.
enum class Admission : uint8_t {
  kAccepted = 0,
  kFull = 1,            // try another miner of the stage, or later
  kWrongRun = 2,
  kWrongStage = 3,
  kWrongShape = 4,
  kStaleAttempt = 5,
  kStaleEpoch = 6,
  kDuplicate = 7,       // has it already: as good as accepted
  kNotReady = 8,
  kUnknownMicrobatch = 9,
  kCorrupt = 10,
  kUnauthenticated = 11,
  kTakenOver = 12,      // another miner of the sender's stage has this microbatch now: drop it
  kNotLeased = 13,      // the orchestrator's signature of the lease does not fit, or that lease is long over
  kUnreachable = 14,    // made by the sender: no answer within the deadline
};
const char* name_of(Admission admission);

}  // namespace tessera::core
