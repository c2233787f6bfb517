// What can happen to an orchestrator: the journal's records. State = replay of these, in order, with their times.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/core/audit_events.h"
#include "tessera/core/ledger_events.h"
#include "tessera/core/messages.h"
#include "tessera/core/verdict.h"

namespace tessera::core {

struct RunCreated {
  static constexpr const char* kName = "run_created";
  std::string run_id;                 // 16 bytes
  std::string run_spec;               // encode(RunSpec)
  std::string data_plan;              // encode(DataPlan)
  uint64_t secret = 0;                // seeds the pathways and the merge pairings; 0 in a ledger that seals
  std::string sealed_secret = {};     // a ledger that seals has the secret here
  std::vector<uint64_t> stage_values; // fp32 values of each stage
  template <class A>
  void fields(A& a) {
    a("run_id", run_id)("run_spec", run_spec)("data_plan", data_plan)("secret", secret)(
        "sealed_secret", sealed_secret)("stage_values", stage_values);
  }
};

struct ResumedStage {
  Epoch epoch = 0;
  Digest state;
  uint64_t merges = 0;
  template <class A>
  void fields(A& a) {
    a("epoch", epoch)("state", state)("merges", merges);
  }
};
struct ResumedMiner {
  NodeId node;
  StageIndex stage = 0;
  Digest local_state;
  uint64_t schedule_step = 0;
  uint32_t fresh = 0;    // counted microbatches since its last merge
  uint32_t partial = 0;  // microbatches in local_state's partial gradient
  template <class A>
  void fields(A& a) {
    a("node", node)("stage", stage)("local_state", local_state)("schedule_step", schedule_step)("fresh", fresh)(
        "partial", partial);
  }
};
struct OpenAtCheckpoint {
  uint64_t microbatch = 0;
  uint32_t attempt = 0;
  uint64_t counted_stages = 0;
  template <class A>
  void fields(A& a) {
    a("microbatch", microbatch)("attempt", attempt)("counted_stages", counted_stages);
  }
};
// The run goes on from a checkpoint: work after it is forgotten, whatever was journalled of it stays readable.
struct RunResumed {
  static constexpr const char* kName = "run_resumed";
  std::string run_spec;
  std::string data_plan;
  uint64_t next_microbatch = 0;
  uint64_t done = 0;
  std::vector<OpenAtCheckpoint> open;  // microbatches below next_microbatch that are to be issued again
  std::vector<ResumedStage> stages;
  std::vector<ResumedMiner> miners;
  template <class A>
  void fields(A& a) {
    a("run_spec", run_spec)("data_plan", data_plan)("next_microbatch", next_microbatch)("done", done)(
        "open", open)("stages", stages)("miners", miners);
  }
};

struct MinerRegistered {
  static constexpr const char* kName = "miner_registered";
  Registration registration;
  template <class A>
  void fields(A& a) {
    a("registration", registration);
  }
};
struct MinerLost {
  static constexpr const char* kName = "miner_lost";
  MinerIndex miner = kNoMiner;
  std::string reason;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("reason", reason);
  }
};
// A lost miner whose process is the same answered again.
struct MinerReturned {
  static constexpr const char* kName = "miner_returned";
  MinerIndex miner = kNoMiner;
  template <class A>
  void fields(A& a) {
    a("miner", miner);
  }
};
struct LeasesRequested {
  static constexpr const char* kName = "leases_requested";
  MinerIndex miner = kNoMiner;
  uint64_t request = 0;
  uint32_t count = 0;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("request", request)("count", count);
  }
};
struct ReceiptsArrived {
  static constexpr const char* kName = "receipts";
  MinerIndex miner = kNoMiner;
  std::vector<Receipt> receipts;
  std::vector<uint64_t> rejected = {};  // numbers of those between them that are not signed by the miner, or not about it
  template <class A>
  void fields(A& a) {
    a("miner", miner)("receipts", receipts)("rejected", rejected);
  }
};
struct UploadCommitted {
  static constexpr const char* kName = "upload_committed";
  MinerIndex miner = kNoMiner;
  UploadCommit commit;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("commit", commit);
  }
};
// Equal results would tell who shares a shard with whom: sealed until the merge is over.
struct ShardCommitted {
  static constexpr const char* kName = "shard_committed";
  static constexpr bool kSealed = true;
  MinerIndex miner = kNoMiner;
  ShardCommit commit;
  StageIndex stage = 0;
  uint32_t resumes = 0;  // of the run before it
  uint64_t seal_id() const { return merge_seal_id(stage, commit.target, resumes); }
  template <class A>
  void fields(A& a) {
    a("miner", miner)("commit", commit)("stage", stage)("resumes", resumes);
  }
};
// The orchestrator's own reduction of a shard: its owners disagree or are gone, or it is in the secret sample. Zero result:
// inputs are missing.
struct ShardRecomputed {
  static constexpr const char* kName = "shard_recomputed";
  static constexpr bool kSealed = true;
  StageIndex stage = 0;
  ShardCommit commit;
  std::vector<Digest> unreadable;  // uploads that are not in the blob store, or are not of this stage
  uint32_t resumes = 0;  // of the run before it
  uint64_t seal_id() const { return merge_seal_id(stage, commit.target, resumes); }
  template <class A>
  void fields(A& a) {
    a("stage", stage)("commit", commit)("unreadable", unreadable)("resumes", resumes);
  }
};
// A replica can't have a shard of a complete merge: the orchestrator looks at the copies, and if need be makes it.
struct ResultUnreadable {
  static constexpr const char* kName = "result_unreadable";
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  Epoch target = 0;
  uint64_t first_block = 0;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("stage", stage)("target", target)("first_block", first_block);
  }
};
struct ResultRechecked {
  static constexpr const char* kName = "result_rechecked";
  StageIndex stage = 0;
  Epoch target = 0;
  uint64_t first_block = 0;
  bool readable = false;  // a copy is what its owner committed: nothing was made
  Digest result;          // of the orchestrator's own reduction; zero: there is none
  ResultCopy copy;        // of it
  std::string why;        // if it could not be made
  template <class A>
  void fields(A& a) {
    a("stage", stage)("target", target)("first_block", first_block)("readable", readable)("result", result)("copy", copy)(
        "why", why);
  }
};
// A miner holds this stage state: after loading it (the miner is ready then) or after a merge.
struct StateHeld {
  static constexpr const char* kName = "state_held";
  MinerIndex miner = kNoMiner;
  MergeApplied applied;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("applied", applied);
  }
};
struct StatePublished {
  static constexpr const char* kName = "state_published";
  MinerIndex miner = kNoMiner;
  Epoch epoch = 0;
  Digest state;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("epoch", epoch)("state", state);
  }
};
// Replicas of a stage disagreed on what a merge gave: the orchestrator made it from the state before and the merge's shards.
struct StateRemade {
  static constexpr const char* kName = "state_remade";
  StageIndex stage = 0;
  Epoch epoch = 0;
  Digest state;     // it lies in the blob store; zero: it could not be made
  std::string why;  // if not
  template <class A>
  void fields(A& a) {
    a("stage", stage)("epoch", epoch)("state", state)("why", why);
  }
};
struct CheckpointCommitted {
  static constexpr const char* kName = "checkpoint_committed";
  MinerIndex miner = kNoMiner;
  CheckpointCommit commit;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("commit", commit);
  }
};
struct CheckpointWritten {
  static constexpr const char* kName = "checkpoint_written";
  uint64_t id = 0;
  bool ok = false;
  std::string where;  // the folder, or the error
  template <class A>
  void fields(A& a) {
    a("id", id)("ok", ok)("where", where);
  }
};
// A miner's own figures, kept for the run's summary. Changes no state.
struct MinerReported {
  static constexpr const char* kName = "miner_reported";
  MinerIndex miner = kNoMiner;
  MinerStatus status;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("status", status);
  }
};
struct Ticked {
  static constexpr const char* kName = "ticked";
  template <class A>
  void fields(A&) {}
};
enum class Command : uint8_t { kPause = 0, kResume = 1, kStop = 2, kCheckpoint = 3 };
struct Commanded {
  static constexpr const char* kName = "commanded";
  Command command = Command::kPause;
  template <class A>
  void fields(A& a) {
    a("command", command);
  }
};

// An operator gives a miner a stage: from its stage's next epoch boundary on, and no rebalancing moves it again.
struct MinerAssigned {
  static constexpr const char* kName = "miner_assigned";
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("stage", stage);
  }
};
// An operator sends a miner away: it finishes what it holds and ends.
struct DrainOrdered {
  static constexpr const char* kName = "drain_ordered";
  MinerIndex miner = kNoMiner;
  template <class A>
  void fields(A& a) {
    a("miner", miner);
  }
};
// An operator changed a key of the running run.
struct SpecChanged {
  static constexpr const char* kName = "spec_changed";
  std::string run_spec;  // the whole new one
  std::string key;
  std::string value;
  template <class A>
  void fields(A& a) {
    a("run_spec", run_spec)("key", key)("value", value);
  }
};
// An operator wants other layer ranges: the run drains and merges, then the states are cut anew.
struct StagesOrdered {
  static constexpr const char* kName = "stages_ordered";
  std::vector<uint32_t> stage_layers;
  template <class A>
  void fields(A& a) {
    a("stage_layers", stage_layers);
  }
};
// The states of the new stages lie in the blob store; or why they don't, and everything stays as it was.
struct StagesChanged {
  static constexpr const char* kName = "stages_changed";
  uint64_t id = 0;
  bool ok = false;
  std::string why;
  std::vector<uint64_t> stage_values;
  std::vector<Digest> states;
  template <class A>
  void fields(A& a) {
    a("id", id)("ok", ok)("why", why)("stage_values", stage_values)("states", states);
  }
};

using Event = std::variant<RunCreated, RunResumed, MinerRegistered, MinerLost, MinerReturned, LeasesRequested,
                           ReceiptsArrived, UploadCommitted, ShardCommitted, ShardRecomputed, ResultUnreadable,
                           ResultRechecked, StateHeld, StatePublished, StateRemade, CheckpointCommitted, CheckpointWritten, MinerReported, Ticked, Commanded,
                           MinerAssigned, DrainOrdered, SpecChanged, StagesOrdered, StagesChanged, VerdictRecorded,
                           RandomLeasesPublished, PairingsPublished, SecretUnsealed,
                           SegmentCommitted, ValidatorJoined, ValidatorLost, AuditLeased, AuditFinished>;

std::string event_name(const Event& event);
std::string event_body(const Event& event);
std::string event_json(const Event& event);
// Nothing for an unknown name or bytes that are not exactly that event.
std::optional<Event> decode_event(std::string_view name, std::string_view body);

// An event type with `kSealed` and `uint64_t seal_id() const` is encrypted in the ledger until a SecretUnsealed of its kind
// and id. Nothing for the others.
template <class T>
concept SealedEvent = requires { requires T::kSealed; };
std::optional<uint64_t> seal_id(const Event& event);
bool is_sealed_kind(std::string_view name);

}  // namespace tessera::core
