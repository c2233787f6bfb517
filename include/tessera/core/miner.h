// A miner as a state machine: step(time, event) returns what the shell must do. It decides what is computed next, where
// frames go, when the optimizer steps, and how the miner takes part in merges. No clock, thread, network or tensor here.
//
// A microbatch at this miner:
//   head: leased -> tokens read -> forward -> sent -> gradient arrives -> backward -> done
//   else: frame admitted -> forward -> sent (tail: none) -> gradient arrives -> backward -> gradient sent -> done
// Admitting a forward holds a place until its backward is over, so a backward is never refused for want of room.
// One compute job is out at a time; backward comes before forward, a due optimizer step before both.
//
// Not thread-safe: one thread owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/core/messages.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_state.h"

namespace tessera::core {

// ---- events ---------------------------------------------------------------------------------------------------------

namespace miner_event {
struct AnswerArrived {
  SyncAnswer answer;
};
struct FrameArrived {
  Frame frame;
  Digest payload_hash;
  NodeId sender;
  uint64_t reply = 0;  // to name in ReplyAdmission
};
struct FrameAnswered {
  uint64_t send = 0;
  Admission admission = Admission::kAccepted;
};
struct TokensRead {
  MicrobatchKey key;
  std::vector<uint32_t> tokens;  // B * (T + 1)
  bool ok = true;
  std::string why;
};
struct ForwardDone {
  MicrobatchKey key;
  BoundaryPayload output;
  Digest output_hash;
  double loss = 0;
  uint64_t weight_version = 0;
  float milliseconds = 0;
};
struct BackwardDone {
  MicrobatchKey key;
  BoundaryPayload input_gradient;
  Digest gradient_hash;
  float milliseconds = 0;
};
struct ComputeFailed {  // of a forward or backward
  MicrobatchKey key;
  std::string why;
};
struct StepDone {
  bool ok = true;  // false: the gradient was not finite and was dropped
  double gradient_norm = 0;
  uint64_t weight_version = 0;
  std::string why;
};
struct StateFetched {  // base and momentum are with the background worker now
  bool ok = true;
  std::string why;
  Values masters;                               // null: keep the engine's initial ones
  std::shared_ptr<const LocalState> local_state;  // when resuming
  Digest state;
  bool local = false;
};
struct StateInstalled {
  bool ok = true;
  std::string why;
  uint64_t weight_version = 0;
  uint32_t accumulated = 0;
  Values initial_masters;  // when the stage was initialised from the seed: the base of epoch 0
};
struct BaseAdopted {  // the background worker took the initial masters as base
  Digest state;
};
struct SnapshotTaken {
  Epoch target = 0;
  Values masters;
  uint64_t weight_version = 0;
};
struct DeltaUploaded {
  UploadCommit commit;
  bool ok = true;
  std::string why;
};
struct ShardReduced {
  ShardCommit commit;
  bool ok = true;
  std::string why;
};
struct BasePrepared {  // the outer step is computed
  Epoch target = 0;
  bool ok = true;
  std::string why;
  Values base;
  Values reference;  // what local progress is measured from: the snapshot, or the old base
  Digest state;
};
struct BaseApplied {
  Epoch target = 0;
  uint64_t weight_version = 0;
};
struct StatePutOut {
  Epoch epoch = 0;
  Digest state;
  bool ok = true;
  std::string why;
};
struct LocalStateExported {
  uint64_t id = 0;
  std::shared_ptr<const LocalState> state;
};
struct LocalStateUploaded {
  uint64_t id = 0;
  Digest object;
  bool ok = true;
  std::string why;
};
struct DrainRequested {};
struct Ticked {};
}  // namespace miner_event

using MinerEvent =
    std::variant<miner_event::AnswerArrived, miner_event::FrameArrived, miner_event::FrameAnswered,
                 miner_event::TokensRead, miner_event::ForwardDone, miner_event::BackwardDone,
                 miner_event::ComputeFailed, miner_event::StepDone, miner_event::StateFetched,
                 miner_event::StateInstalled, miner_event::BaseAdopted, miner_event::SnapshotTaken,
                 miner_event::DeltaUploaded, miner_event::ShardReduced, miner_event::BasePrepared,
                 miner_event::BaseApplied, miner_event::StatePutOut, miner_event::LocalStateExported,
                 miner_event::LocalStateUploaded, miner_event::DrainRequested, miner_event::Ticked>;

// ---- effects --------------------------------------------------------------------------------------------------------

namespace miner_effect {
struct ReplyAdmission {
  uint64_t reply = 0;
  Admission admission = Admission::kAccepted;
};
struct SendFrame {
  uint64_t send = 0;
  Peer peer;
  Frame frame;
  uint32_t timeout_ms = 0;
};
struct ReadTokens {
  MicrobatchKey key;
};
// For the compute thread, in order, one answer each (Discard has none).
struct Forward {
  MicrobatchKey key;
  std::shared_ptr<const std::vector<uint32_t>> tokens;
  BoundaryPayload input;
};
struct Backward {
  MicrobatchKey key;
  BoundaryPayload output_gradient;
  bool accumulate = true;
};
struct Discard {
  MicrobatchKey key;
};
struct OptimizerStep {
  double learning_rate = 0;
};
struct InstallState {
  Values masters;
  std::shared_ptr<const LocalState> local_state;
};
struct TakeSnapshot {
  Epoch target = 0;
};
struct ApplyBase {
  Epoch target = 0;
  Values base;
  Values reference;
};
struct ExportLocalState {
  uint64_t id = 0;
};
// For the background worker, in order, one answer each.
struct FetchState {
  Assignment assignment;
};
struct AdoptBase {
  Values masters;
};
struct UploadDelta {
  Epoch target = 0;
  Values snapshot;
  uint64_t snapshot_step = 0;
  uint64_t snapshot_version = 0;
};
struct ReduceShard {
  Epoch target = 0;
  ShardTask task;
  std::vector<UploadRef> uploads;
};
struct PrepareBase {
  Epoch target = 0;
  std::vector<ShardResult> results;
  bool participant = false;
};
struct PutOutState {
  Epoch epoch = 0;
};
struct UploadLocalState {
  uint64_t id = 0;
  std::shared_ptr<const LocalState> state;
};
struct Leave {
  std::string reason;
};
struct Say {
  std::string text;
  bool warning = false;
};
}  // namespace miner_effect

using ComputeJob = std::variant<miner_effect::Forward, miner_effect::Backward, miner_effect::Discard,
                                miner_effect::OptimizerStep, miner_effect::InstallState,
                                miner_effect::TakeSnapshot, miner_effect::ApplyBase,
                                miner_effect::ExportLocalState>;
using BackgroundJob = std::variant<miner_effect::FetchState, miner_effect::AdoptBase, miner_effect::UploadDelta,
                                   miner_effect::ReduceShard, miner_effect::PrepareBase,
                                   miner_effect::PutOutState, miner_effect::UploadLocalState>;
using MinerEffect = std::variant<miner_effect::ReplyAdmission, miner_effect::SendFrame, miner_effect::ReadTokens,
                                 ComputeJob, BackgroundJob, miner_effect::Leave, miner_effect::Say>;

struct MinerIdentity {
  MinerIndex index = kNoMiner;
  uint64_t incarnation = 0;
  std::string run_id;
  TimeMs unix_offset_ms = 0;  // unix time less the time that step() is given
  std::function<Signature(std::string_view)> sign;
};

class Miner {
 public:
  Miner(const RunSpec& spec, MinerIdentity identity);

  std::vector<MinerEffect> step(TimeMs now, MinerEvent event);

  // The report to send now. What was urgent is in it.
  SyncRequest report();
  // True when a report should not wait for the usual interval.
  bool report_is_urgent() const;
  MinerPhase phase() const { return phase_; }
  std::optional<StageIndex> stage() const { return assignment_ ? std::optional(assignment_->stage) : std::nullopt; }
  size_t in_flight() const { return works_.size(); }
  uint64_t run_tag() const;

 private:
  enum class WorkState : uint8_t {
    kReadingTokens,    // head only
    kForwardQueued,
    kForwarding,
    kSending,          // to downstream, not accepted yet
    kAwaitingGradient,
    kBackwardQueued,
    kBackwarding,
    kReturning,        // the gradient to upstream, not accepted yet
  };
  struct Work {
    WorkState state = WorkState::kReadingTokens;
    uint64_t counted_stages = 0;
    std::vector<MinerIndex> pathway;
    TimeMs deadline = 0;
    TimeMs retry_at = 0;           // when a refused or failed send is tried again; 0: nothing to retry
    uint64_t send = 0;             // id of the send under way
    MinerIndex upstream = kNoMiner;
    MinerIndex downstream = kNoMiner;
    std::set<MinerIndex> tried;    // refused it in this round
    std::shared_ptr<const std::vector<uint32_t>> tokens;
    BoundaryPayload payload;       // input before the forward, output after it, gradient in before the backward, then out
    bool accumulate = true;
    Receipt receipt;               // filled in on the way
  };
  struct PeerState {
    Peer peer;
    TimeMs suspended_until = 0;
    uint32_t outstanding = 0;
  };

  // miner.cpp
  void on(miner_event::AnswerArrived& event);
  void on(miner_event::StateFetched& event);
  void on(miner_event::StateInstalled& event);
  void on(miner_event::BaseAdopted& event);
  void on(miner_event::LocalStateExported& event);
  void on(miner_event::LocalStateUploaded& event);
  void on(miner_event::StatePutOut& event);
  void on(miner_event::DrainRequested& event);
  void on(miner_event::Ticked& event);
  void take_assignment(const Assignment& assignment);
  void become_ready(const Digest& state);
  bool holds(const Assignment& assignment) const;
  // miner_work.cpp
  void on(miner_event::TokensRead& event);
  void on(miner_event::ForwardDone& event);
  void on(miner_event::BackwardDone& event);
  void on(miner_event::ComputeFailed& event);
  void on(miner_event::StepDone& event);
  void take_leases(const SyncAnswer& answer);
  void schedule();
  void finish(const MicrobatchKey& key);
  void drop(const MicrobatchKey& key, const std::string& reason);
  void retry_and_expire();
  // miner_frames.cpp
  void on(miner_event::FrameArrived& event);
  void on(miner_event::FrameAnswered& event);
  Admission admit_forward(miner_event::FrameArrived& event);
  Admission admit_backward(miner_event::FrameArrived& event);
  std::optional<Admission> meet_held(const MicrobatchKey& key, MinerIndex sender);
  void send_onward(const MicrobatchKey& key, Work& work);
  void send_back(const MicrobatchKey& key, Work& work);
  MinerIndex choose_downstream(const Work& work) const;
  Frame frame_of(const MicrobatchKey& key, const Work& work, Direction direction) const;
  bool is_head() const { return assignment_->stage == 0; }
  bool is_tail() const { return assignment_->stage + 1 == spec_.pipeline.stages; }
  // miner_merge.cpp
  void on(miner_event::SnapshotTaken& event);
  void on(miner_event::DeltaUploaded& event);
  void on(miner_event::ShardReduced& event);
  void on(miner_event::BasePrepared& event);
  void on(miner_event::BaseApplied& event);
  void take_merge_directive(const std::optional<MergeDirective>& directive);

  void emit(MinerEffect effect);
  void say(std::string text, bool warning = false);

  const RunSpec spec_;
  const MinerIdentity identity_;
  TimeMs now_ = 0;
  std::vector<MinerEffect> effects_;

  MinerPhase phase_ = MinerPhase::kJoining;
  std::optional<Assignment> assignment_;
  Digest asked_state_;                         // as it was assigned
  bool loading_ = false;
  bool resuming_ = false;                      // the state being loaded has this miner's own part
  TimeMs load_retry_at_ = 0;
  std::map<MinerIndex, PeerState> peers_;
  uint64_t peers_version_ = 0;

  std::map<MicrobatchKey, Work> works_;
  std::map<uint64_t, MicrobatchKey> sends_;
  std::deque<MicrobatchKey> forward_queue_;
  std::deque<MicrobatchKey> backward_queue_;
  std::deque<ComputeJob> control_queue_;       // snapshot, apply, export, install
  bool computing_ = false;
  bool step_due_ = false;
  uint64_t next_send_ = 1;
  std::deque<MicrobatchId> accumulated_ids_;   // the newest kRemembered, so that no attempt is accumulated twice here
  std::set<MicrobatchId> accumulated_set_;

  uint64_t local_steps_ = 0;
  uint64_t schedule_step_ = 0;
  uint64_t weight_version_ = 0;
  uint32_t accumulated_ = 0;
  MinerStatus status_;
  std::deque<Receipt> receipts_;
  uint64_t next_receipt_ = 1;
  uint64_t lease_request_ = 1;
  bool urgent_ = false;

  Epoch epoch_ = 0;
  std::optional<MergeApplied> applied_;
  Epoch snapshot_target_ = 0;                  // of the snapshot taken or being taken; 0: none
  std::optional<UploadCommit> upload_;
  Epoch reduce_target_ = 0;
  std::set<uint32_t> reducing_;
  std::vector<ShardCommit> shards_;
  Epoch preparing_ = 0;
  Digest pending_state_;                       // of the base being applied
  std::optional<Digest> published_state_;
  bool putting_out_ = false;
  uint64_t checkpoint_begun_ = 0;
  std::optional<CheckpointCommit> pending_checkpoint_;
  std::optional<CheckpointCommit> checkpoint_;
};

}  // namespace tessera::core
