// Joining, loading, reports and answers. The microbatches' way is in miner_work.cpp, merges are in miner_merge.cpp.
#include "tessera/core/miner.h"

#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/run_changes.h"

namespace tessera::core {
namespace {

constexpr TimeMs kLoadRetryMs = 1000;
constexpr TimeMs kStoodStillMs = 1000;  // without an event: the shell ticks far more often

}  // namespace

Miner::Miner(const RunSpec& spec, MinerIdentity identity) : spec_(spec), identity_(std::move(identity)) {}

uint64_t Miner::run_tag() const {
  uint64_t tag = 0;
  std::memcpy(&tag, identity_.run_id.data(), std::min<size_t>(sizeof(tag), identity_.run_id.size()));
  return tag;
}

std::vector<MinerEffect> Miner::step(TimeMs now, MinerEvent event) {
  const TimeMs gap = now_ == 0 ? 0 : now - now_;
  now_ = std::max(now, now_);
  effects_.clear();
  if (gap >= spec_.timeouts.peer_ms && gap >= kStoodStillMs) stood_still(gap);
  std::visit([&](auto& e) { on(e); }, event);
  send_waiting();
  schedule();
  return std::move(effects_);
}

// (Not inline: GCC 12 then warns of members of the variant's other alternatives.)
void Miner::emit(MinerEffect effect) { effects_.push_back(std::move(effect)); }
void Miner::enqueue(ComputeJob job) { control_queue_.push_back(std::move(job)); }
void Miner::enqueue_first(ComputeJob job) { control_queue_.push_front(std::move(job)); }

void Miner::say(std::string text, bool warning) { emit(miner_effect::Say{std::move(text), warning}); }

SyncRequest Miner::report() {
  urgent_ = false;
  SyncRequest request;
  request.miner = identity_.index;
  request.incarnation = identity_.incarnation;
  request.status = status_;
  request.status.phase = phase_;
  request.status.epoch = epoch_;
  request.status.local_steps = local_steps_;
  request.status.schedule_step = schedule_step_;
  request.status.weight_version = weight_version_;
  request.status.queued = static_cast<uint32_t>(forward_queue_.size() + backward_queue_.size());
  request.status.in_flight = static_cast<uint32_t>(works_.size());
  for (const Receipt& receipt : receipts_) {
    if (request.receipts.size() == kMaxReceiptsPerSync) break;
    request.receipts.push_back(receipt);
  }
  request.leases_wanted = leases_wanted();
  // Also if it wants none: it may be given what a dead head held.
  if (phase_ == MinerPhase::kReady && is_head()) request.lease_request = lease_request_;
  // The upload is weighed by receipts: it is committed only when all of them are in this report or known already.
  if (receipts_.size() <= kMaxReceiptsPerSync) request.upload = upload_;
  request.unreadable_results = unreadable_results_;
  request.shards = shards_;
  request.sealed_heard = sealed_heard_;
  request.applied = applied_;
  request.published_state = published_state_;
  request.checkpoint = checkpoint_;
  request.segment = segment_;
  request.peers_version = peers_version_;
  request.spec_version = spec_version_;
  farewell_reported_ = leaving_ && works_.empty();
  return request;
}

bool Miner::report_is_urgent() const {
  return urgent_ || receipts_.size() >= kMaxReceiptsPerSync / 2;
}

void Miner::on(miner_event::AnswerArrived& event) {
  SyncAnswer& answer = event.answer;
  while (!receipts_.empty() && receipts_.front().sequence <= answer.receipts_acknowledged) receipts_.pop_front();
  if (!receipts_.empty() && receipts_.size() >= kMaxReceiptsPerSync / 2) urgent_ = true;
  take_segment_answer(answer);
  if (answer.peers) {
    take_peers(std::move(*answer.peers));
    peers_version_ = answer.peers_version;
  }
  if (answer.leave) {
    emit(miner_effect::Leave{fmt::format("the run is {}", name_of(answer.phase))});
    return;
  }
  if (answer.run_spec && !take_spec(answer)) return;
  if (answer.drain) drain_and({"sent away by an operator", false});
  if (answer.reason != reason_) {
    reason_ = answer.reason;
    if (!reason_.empty()) say(fmt::format("the orchestrator says: {}", reason_));
  }
  if (answer.drain) begin_drain("the orchestrator asks for it");
  if (answer.assignment) take_assignment(*answer.assignment);
  if (phase_ != MinerPhase::kReady && phase_ != MinerPhase::kDraining) return leave_if_drained();
  if (phase_ == MinerPhase::kReady) take_leases(answer);
  take_merge_directive(answer.merge);
  if (answer.publish_state && !putting_out_ && !published_state_) {
    putting_out_ = true;
    emit(BackgroundJob(miner_effect::PutOutState{epoch_}));
  }
  if (answer.checkpoint == 0) {
    checkpoint_.reset();
  } else if (answer.checkpoint != checkpoint_begun_) {
    checkpoint_begun_ = answer.checkpoint;
    checkpoint_.reset();
    enqueue(miner_effect::ExportLocalState{answer.checkpoint});
  }
  leave_if_drained();
}

// False: what it is built on has changed, and it leaves.
bool Miner::take_spec(const SyncAnswer& answer) {
  RunSpec spec;
  if (!decode(*answer.run_spec, &spec) || !validate(&spec).ok()) {
    say("the run's new specification can't be read; do both sides run the same version of Tessera?", true);
    return true;
  }
  if (!same_layout(spec, spec_)) {
    emit(miner_effect::Leave{"the layers of the stages changed", true});
    return false;
  }
  if (spec_version_ > 0) say("the run's settings changed");
  spec_ = std::move(spec);
  spec_version_ = answer.spec_version;
  return true;
}

// What is in flight is finished, nothing new is taken; then it leaves.
void Miner::drain_and(miner_effect::Leave leave) {
  if (leaving_) return;
  leaving_ = std::move(leave);
  begin_drain(leaving_->reason);
}

void Miner::leave_if_drained() {
  if (leaving_ && farewell_reported_ && receipts_.empty()) emit(*leaving_);
}

// The answer to a report that was on its way when the stage was loaded still asks for it.
bool Miner::holds(const Assignment& assignment) const {
  return phase_ == MinerPhase::kReady && epoch_ == assignment.epoch && assignment_->epoch == assignment.epoch &&
         assignment_->stage == assignment.stage && asked_state_ == assignment.state;
}

void Miner::take_assignment(const Assignment& assignment) {
  if (phase_ == MinerPhase::kDraining) return;
  if (assignment_ && assignment_->stage != assignment.stage) {
    // The engine is built for one stage: another incarnation takes the new one.
    return drain_and({fmt::format("assigned to stage {} instead of {}", assignment.stage, assignment_->stage), true});
  }
  if (loading_ || now_ < load_retry_at_ || holds(assignment)) return;
  if (assignment.stage >= spec_.pipeline.stages) {
    emit(miner_effect::Leave{fmt::format("assigned to stage {} of a run with {}", assignment.stage, spec_.pipeline.stages)});
    return;
  }
  std::vector<MicrobatchKey> keys;
  for (const auto& [key, work] : works_) keys.push_back(key);
  for (const MicrobatchKey& key : keys) drop(key, "the stage is loaded anew");
  loading_ = true;
  resuming_ = !assignment.local_state.is_zero();
  phase_ = MinerPhase::kLoading;
  assignment_ = assignment;
  asked_state_ = assignment.state;
  applied_.reset();
  upload_.reset();
  shards_.clear();
  reducing_.clear();
  snapshot_target_ = preparing_ = reduce_target_ = 0;
  unreadable_results_.clear();
  published_state_.reset();
  say(fmt::format("loads stage {} at epoch {}{}", assignment.stage, assignment.epoch,
                  assignment.state.is_zero() ? " from the run's seed" : ""));
  emit(BackgroundJob(miner_effect::FetchState{assignment, recovering_ && !resuming_}));
}

void Miner::on(miner_event::StateFetched& event) {
  if (!event.ok) {
    loading_ = false;
    load_retry_at_ = now_ + kLoadRetryMs;
    say(fmt::format("the stage's state can't be had yet: {}", event.why), true);
    return;
  }
  assignment_->state = event.state;
  recovered_ = event.local_state != nullptr && !resuming_;
  recover(event.recovered);
  enqueue(miner_effect::InstallState{event.masters, event.local_state});
}

void Miner::on(miner_event::StateInstalled& event) {
  computing_ = false;
  if (!event.ok) {
    loading_ = false;
    load_retry_at_ = now_ + kLoadRetryMs;
    recovering_ = recovering_ && !recovered_;  // it may be what was saved that does not fit
    say(fmt::format("the stage's state does not fit: {}", event.why), true);
    return;
  }
  weight_version_ = event.weight_version;
  accumulated_ = event.accumulated;
  schedule_step_ = assignment_->schedule_step;
  saved_steps_ = local_steps_;
  saved_accumulated_ = accumulated_;
  if (resuming_) local_steps_ = std::max<uint64_t>(local_steps_, 1);
  if (event.initial_masters) {
    emit(BackgroundJob(miner_effect::AdoptBase{event.initial_masters}));
  } else {
    become_ready(assignment_->state);
  }
}

void Miner::on(miner_event::BaseAdopted& event) { become_ready(event.state); }

void Miner::become_ready(const Digest& state) {
  loading_ = false;
  recovering_ = false;  // what this process saves itself is no news to it
  if (phase_ == MinerPhase::kLoading) phase_ = MinerPhase::kReady;
  epoch_ = assignment_->epoch;
  step_due_ = accumulated_ >= spec_.training.microbatches_per_step;
  applied_ = MergeApplied{.epoch = epoch_, .state = state, .version_after = weight_version_, .local_step = local_steps_};
  urgent_ = true;
  if (segment_number_ > 0) segment_whole_ = false;  // what was loaded has nothing to do with what came before
  begin_segment(true);
  say(fmt::format("ready: stage {} at epoch {}", assignment_->stage, epoch_));
}

void Miner::on(miner_event::StatePutOut& event) {
  putting_out_ = false;
  if (!event.ok) {
    say(fmt::format("the stage's state could not be published: {}; it is tried again", event.why), true);
    return;
  }
  if (event.epoch != epoch_) return;
  published_state_ = event.state;
  urgent_ = true;
}

void Miner::on(miner_event::DrainRequested&) { begin_drain("asked to stop"); }

void Miner::begin_drain(const std::string& reason) {
  if (phase_ == MinerPhase::kReady || phase_ == MinerPhase::kJoining || phase_ == MinerPhase::kLoading) {
    phase_ = MinerPhase::kDraining;
    urgent_ = true;
    // A head's leases that are not begun are issued to another head as soon as this one has left.
    std::vector<MicrobatchKey> not_begun;
    for (const auto& [key, work] : works_) {
      const bool waits = work.state == WorkState::kReadingTokens || work.state == WorkState::kForwardQueued;
      if (waits && is_head()) not_begun.push_back(key);
    }
    for (const MicrobatchKey& key : not_begun) drop(key, "this miner leaves");
    say(fmt::format("draining, {}: {} microbatches in flight", reason, works_.size()));
  }
}

void Miner::on(miner_event::Ticked&) {
  window_.forget(now_);
  retry_and_expire();
  watch_peers();
  ask_overdue();
  forget_kept();
  save_if_due();
}

}  // namespace tessera::core
