// A miner as a state machine: step(time, event) returns what the shell must do. It decides what is computed next, where
// frames go, when the optimizer steps, and how the miner takes part in merges. No clock, thread, network or tensor here.
//
// A microbatch at this miner:
//   head: leased -> tokens read -> forward -> sent -> gradient arrives -> backward -> done
//   else: frame admitted -> forward -> sent (tail: none) -> gradient arrives -> backward -> gradient sent -> done
// The output is kept until its gradient is back. When the peer that holds the microbatch is gone, the output is given to
// another miner of that stage, within the same attempt; that one computes its forward again and hands on to the pathway's
// next miner, which holds the microbatch already and answers with the gradient that it has or will have.
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
#include "tessera/core/response_times.h"
#include "tessera/core/recent_times.h"
#include "tessera/core/routing.h"
#include "tessera/core/send_window.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_state.h"

namespace tessera::core {

struct MinerIdentity {
  MinerIndex index = kNoMiner;
  uint64_t incarnation = 0;
  std::string run_id;
  TimeMs unix_offset_ms = 0;  // unix time less the time that step() is given
  NodeId lease_key;           // signs leases
  std::function<Signature(std::string_view)> sign;
  std::function<bool(const NodeId&, std::string_view, const Signature&)> verify;
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
  StepNote step_note() const;
  // Drained: nothing is in flight, and nothing of its own would be lost with the process.
  bool is_settled() const;

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
    kReturned,         // upstream has the gradient; the weight gradients are still computed
  };
  using Repairs = std::vector<uint8_t>;
  struct Work {
    WorkState state = WorkState::kReadingTokens;
    Lease lease;                   // with the proof that goes on with it
    TimeMs deadline = 0;
    TimeMs retry_at = 0;           // when a refused or failed send is tried again; 0: nothing to retry
    uint64_t send = 0;             // id of the send under way
    TimeMs sent_at = 0;
    TimeMs accepted_at = 0;        // by downstream
    TimeMs gradient_due = 0;       // when downstream is asked whether it still has it
    uint8_t asked_again = 0;       // how often it was asked
    Repairs repairs;               // as in the frame it came with: the stages up to this one
    Repairs sent_as;               // `repairs` of the last forward that was sent
    uint8_t given_again = 0;       // how often the next stage was given it again
    bool adopted = false;          // its upstream was replaced
    bool backward_running = false;
    bool outstanding = false;      // with downstream
    bool waits_to_be_sent = false; // for room in the window
    MinerIndex upstream = kNoMiner;
    MinerIndex downstream = kNoMiner;
    std::set<MinerIndex> tried;    // refused it in this round
    std::shared_ptr<const std::vector<uint32_t>> tokens;
    // Input before the forward, output after it (kept until the gradient is there), gradient in before the backward, then
    // out.
    BoundaryPayload payload;
    bool accumulate = true;
    Receipt receipt;               // filled in on the way
  };
  struct PeerState {
    Peer peer;
    uint32_t outstanding = 0;
    Epoch newest_epoch = 0;        // in its frames so far; epochs are per stage, so its own is the only measure of age
    std::string suspended;         // why it is left out; empty: it is not
    TimeMs heard_at = 0;           // its last sign of life
    ResponseTimes probes;
    ResponseTimes admissions;
    ResponseTimes gradients;       // from acceptance on
    uint64_t probe = 0;            // under way; 0: none
    TimeMs probe_sent_at = 0;
    TimeMs probe_at = 0;           // of a suspended one: the next
    TimeMs probe_pause = 0;
    TimeMs patience = 0;           // least probe deadline: longer after a false suspicion; 0: the usual
    PeerHealth health;
    TimeMs health_at = 0;          // 0: never told
    uint32_t given_since = 0;      // microbatches it was given since
  };
  // A gradient that upstream has accepted, kept in case that upstream dies before it has handed on its own.
  struct Kept {
    BoundaryPayload gradient;
    Repairs repairs;
    Lease lease;
    TimeMs deadline = 0;
  };

  // miner.cpp
  void on(miner_event::AnswerArrived& event);
  void on(miner_event::StateFetched& event);
  void on(miner_event::StateInstalled& event);
  void on(miner_event::BaseAdopted& event);
  void on(miner_event::StatePutOut& event);
  void on(miner_event::DrainRequested& event);
  void on(miner_event::Ticked& event);
  bool take_spec(const SyncAnswer& answer);
  void drain_and(miner_effect::Leave leave);
  void leave_if_drained();
  void begin_drain(const std::string& reason);
  void take_assignment(const Assignment& assignment);
  void become_ready(const Digest& state);
  bool holds(const Assignment& assignment) const;
  // miner_checkpoint.cpp
  void on(miner_event::LocalStateExported& event);
  void on(miner_event::LocalStateUploaded& event);
  void on(miner_event::LocalStateSaved& event);
  void recover(const Recovered& recovered);
  bool has_unsaved() const;
  void save_if_due();
  // miner_work.cpp
  void on(miner_event::TokensRead& event);
  void on(miner_event::ForwardDone& event);
  void on(miner_event::InputGradientReady& event);
  void on(miner_event::BackwardDone& event);
  void on(miner_event::ComputeFailed& event);
  void on(miner_event::StepDone& event);
  bool is_accumulated(const MicrobatchKey& key);
  void write_receipt(const MicrobatchKey& key, const Work& work, float milliseconds);
  uint32_t leases_wanted() const;
  void take_leases(const SyncAnswer& answer);
  void schedule();
  void finish(const MicrobatchKey& key);
  void drop(const MicrobatchKey& key, const std::string& reason);
  void retry_and_expire();
  void stood_still(TimeMs ms);
  // miner_frames.cpp: what comes in
  void on(miner_event::FrameArrived& event);
  Admission admit_forward(miner_event::FrameArrived& event);
  Admission admit_backward(miner_event::FrameArrived& event);
  bool is_leased(const Frame& frame, const Lease& lease) const;
  std::optional<Admission> meet_held(const MicrobatchKey& key, MinerIndex sender, const Frame& frame, const Lease& lease);
  Admission adopt(const MicrobatchKey& key, Work& work, MinerIndex sender, const Frame& frame, const Lease& lease);
  std::optional<Admission> meet_kept(const MicrobatchKey& key, MinerIndex sender, const Repairs& repairs);
  void keep_gradient(const MicrobatchKey& key, Work& work);
  void forget_kept();
  // miner_sends.cpp: what goes out
  void on(miner_event::FrameAnswered& event);
  void forward_answered(const MicrobatchKey& key, Work& work, Admission admission);
  void gradient_answered(const MicrobatchKey& key, Work& work, Admission admission);
  void send_onward(const MicrobatchKey& key, Work& work);
  void send_forward_to(MinerIndex to, const MicrobatchKey& key, Work& work);
  void send_back(const MicrobatchKey& key, Work& work);
  void give_again(const MicrobatchKey& key, Work& work);
  void ask_overdue();
  void release_downstream(Work& work);
  void sent(const MicrobatchKey& key, Work& work, TimeMs timeout);
  void abandon_send(const Work& work);
  void wait_to_be_sent(const MicrobatchKey& key, Work& work);
  void send_waiting();
  MinerIndex choose_downstream(const Work& work);
  // miner_peers.cpp: how peers are
  void on(miner_event::ProbeAnswered& event);
  void on(miner_event::PeerBroken& event);
  void take_peers(std::vector<Peer> table);
  void heard(PeerState& peer);
  void suspend(PeerState& peer, const std::string& why);
  void give_away_held_by(MinerIndex miner, const std::string& why);
  void watch_peers();
  void probe(PeerState& peer);
  void ask_health(PeerState& peer);
  TimeMs probe_deadline(const PeerState& peer) const;
  bool is_usable(const PeerState& peer) const { return peer.peer.live && peer.suspended.empty(); }
  Frame frame_of(const MicrobatchKey& key, const Work& work, Direction direction) const;
  bool is_head() const { return assignment_->stage == 0; }
  bool is_tail() const { return assignment_->stage + 1 == spec_.pipeline.stages; }
  // miner_audit.cpp
  void on(miner_event::SegmentExported& event);
  void on(miner_event::SegmentStored& event);
  void take_segment_answer(const SyncAnswer& answer);
  void begin_segment(bool weights_replaced);
  void note_step(double learning_rate, uint32_t microbatches, bool skipped);
  // miner_merge.cpp
  void on(miner_event::SnapshotTaken& event);
  void on(miner_event::DeltaUploaded& event);
  void on(miner_event::ShardReduced& event);
  void on(miner_event::BasePrepared& event);
  void on(miner_event::BaseApplied& event);
  void take_merge_directive(const std::optional<MergeDirective>& directive);
  bool waits_for_results(const MergeDirective& merge);

  void emit(MinerEffect effect);
  void enqueue(ComputeJob job);  // before backwards and forwards
  void enqueue_first(ComputeJob job);
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
  std::map<NodeId, MinerIndex> peer_of_node_;
  std::set<MinerIndex> suspended_;
  std::map<uint64_t, MinerIndex> probes_;      // under way
  uint64_t next_probe_ = 1;
  Router router_;
  TimeMs woke_at_ = 0;                         // when this process last stood still; what was sent before says nothing
  uint64_t peers_version_ = 0;

  std::map<MicrobatchKey, Work> works_;
  std::map<uint64_t, MicrobatchKey> sends_;
  SendWindow window_;
  std::deque<MicrobatchKey> unsent_backwards_;  // wait for room in the window; may name some that do so no more
  std::deque<MicrobatchKey> unsent_forwards_;
  std::map<MicrobatchKey, Kept> kept_;
  std::deque<MicrobatchKey> kept_order_;       // oldest first; may name some that are gone
  size_t kept_bytes_ = 0;
  std::deque<MicrobatchKey> forward_queue_;
  std::deque<MicrobatchKey> backward_queue_;
  std::deque<ComputeJob> control_queue_;       // snapshot, apply, export, install
  bool computing_ = false;
  bool step_due_ = false;
  uint64_t next_send_ = 1;
  std::deque<MicrobatchId> accumulated_ids_;   // the newest kRemembered, so that no attempt is accumulated twice here
  std::set<MicrobatchId> accumulated_set_;
  // Of them those of a process before this one, with the attempt that was not accumulated again, if there was one.
  std::map<MicrobatchId, std::optional<uint32_t>> recovered_ids_;

  uint64_t local_steps_ = 0;
  uint64_t schedule_step_ = 0;
  uint64_t weight_version_ = 0;
  uint32_t accumulated_ = 0;
  MinerStatus status_;
  RecentTimes forward_times_, backward_times_;
  std::deque<Receipt> receipts_;
  uint64_t next_receipt_ = 1;
  uint64_t lease_request_ = 1;
  bool urgent_ = false;
  std::string reason_;                         // the orchestrator's last word on why there is no work

  Epoch epoch_ = 0;
  std::optional<MergeApplied> applied_;
  Epoch snapshot_target_ = 0;                  // of the snapshot taken or being taken; 0: none
  uint64_t snapshot_again_ = 0;                // the directive's that asked for it
  uint32_t upload_rounds_ = 1;                 // the same
  uint64_t sealed_heard_ = 0;
  std::optional<UploadCommit> upload_;
  std::vector<UnreadableResult> unreadable_results_;  // of the last try to apply a merge
  Digest unreadable_among_;                    // of the results that they are among
  uint32_t waits_for_results_ = 0;
  Epoch reduce_target_ = 0;
  std::set<uint32_t> reducing_;
  std::vector<ShardCommit> shards_;
  Epoch preparing_ = 0;
  Digest pending_state_;                       // of the base being applied
  std::optional<Digest> published_state_;
  bool putting_out_ = false;
  uint64_t earlier_steps_ = 0;                 // local steps of the processes before this one
  uint64_t merged_steps_ = 0;                  // of all local steps those that are in the base
  uint64_t snapshot_steps_ = 0;                // ... those that were in the snapshot
  uint64_t saved_steps_ = 0;                   // of this process, in its own last checkpoint
  uint32_t saved_accumulated_ = 0;
  bool saving_ = false;
  bool recovered_ = false;                     // the state being loaded is what the process before has saved
  bool recovering_ = true;                     // false: what was found was refused by the engine
  uint64_t checkpoint_begun_ = 0;
  std::optional<CheckpointCommit> pending_checkpoint_;
  std::optional<CheckpointCommit> checkpoint_;
  // The segment under way (core/segment_commit.h).
  uint64_t segment_number_ = 0;                // of the last one whose begin was exported
  uint64_t segment_step_ = 0;                  // local steps done when it began
  bool segment_busy_ = false;                  // its begin is exported, stored, or not known to the orchestrator yet
  bool segment_due_ = false;                   // the next is to begin as soon as that is over
  bool segment_whole_ = true;
  std::vector<StepRecord> segment_steps_;
  std::optional<SegmentCommit> segment_;       // to report
  double step_learning_rate_ = 0;              // of the step under way
};

}  // namespace tessera::core
