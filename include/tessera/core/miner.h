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
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/core/messages.h"
#include "tessera/core/miner_events.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_state.h"

namespace tessera::core {

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
  // What a peer's probe is answered.
  PeerHealth health() const;
  MinerPhase phase() const { return phase_; }
  std::optional<StageIndex> stage() const { return assignment_ ? std::optional(assignment_->stage) : std::nullopt; }
  size_t in_flight() const { return works_.size(); }
  // The run specification it follows; the orchestrator may change it while the miner works.
  const RunSpec& spec() const { return spec_; }
  uint64_t spec_version() const { return spec_version_; }
  // It drains for another stage: its process goes on as another incarnation.
  bool joins_again() const { return leaving_ && leaving_->rejoin; }
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
    Epoch newest_epoch = 0;        // in its frames so far; epochs are per stage, so its own is the only measure of age
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
  bool take_spec(const SyncAnswer& answer);
  void drain_and(miner_effect::Leave leave);
  void leave_if_drained();
  void on_drain(const std::string& reason);
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

  RunSpec spec_;
  uint64_t spec_version_ = 0;                  // 0: the one it was made with
  const MinerIdentity identity_;
  TimeMs now_ = 0;
  std::vector<MinerEffect> effects_;

  MinerPhase phase_ = MinerPhase::kJoining;
  std::optional<Assignment> assignment_;
  Digest asked_state_;                         // as it was assigned
  bool loading_ = false;
  std::optional<miner_effect::Leave> leaving_; // when nothing is in flight and the orchestrator knows of that and the receipts
  bool farewell_reported_ = false;
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
  std::string reason_;                         // the orchestrator's last word on why there is no work

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
