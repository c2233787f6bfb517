// A miner's own state: in the run's checkpoints, and in its own folder for the process that comes
// after it.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr size_t kSavedIds = 4096;  // accumulated microbatches that a checkpoint names

}  // namespace

StepNote Miner::step_note() const {
  return {.run_id = identity_.run_id,
          .stage = assignment_ ? assignment_->stage : 0,
          .steps = earlier_steps_ + local_steps_,
          .merged_steps = merged_steps_};
}

bool Miner::has_unsaved() const {
  return local_steps_ > saved_steps_ || accumulated_ != saved_accumulated_;
}

bool Miner::is_settled() const {
  if (!works_.empty() || saving_) return false;
  return spec_.training.local_checkpoint_steps == 0 || !assignment_ || loading_ || !has_unsaved();
}

// One at a time. A miner that is about to leave saves what there is.
void Miner::save_if_due() {
  const uint32_t interval = spec_.training.local_checkpoint_steps;
  if (interval == 0 || saving_ || loading_ || !applied_ || step_due_) return;
  const bool leaving = phase_ == MinerPhase::kDraining && works_.empty() && has_unsaved();
  if (local_steps_ - saved_steps_ < interval && !leaving) return;
  saving_ = true;
  enqueue(miner_effect::ExportLocalState{0});
}

void Miner::on(miner_event::LocalStateSaved& event) {
  saving_ = false;
  // Also after a failure: it is tried again after as many steps, not at once.
  saved_steps_ = event.steps - earlier_steps_;
  if (!event.ok)
    say(fmt::format("this miner's own checkpoint could not be written: {}", event.why), true);
}

void Miner::recover(const Recovered& recovered) {
  if (!recovered.text.empty()) say(recovered.text, !recovered.checkpoint);
  earlier_steps_ = recovered.steps;
  merged_steps_ = recovered.merged_steps;
  status_.steps_lost = recovered.steps_lost;
  if (!recovered.checkpoint) return;
  // What is in the masters and the gradient was done by the process before: in receipts its steps
  // are step 0.
  local_steps_ = std::max<uint64_t>(local_steps_, 1);
  earlier_steps_ -= std::min<uint64_t>(earlier_steps_, local_steps_);
  assignment_->schedule_step =
      std::max(assignment_->schedule_step, recovered.checkpoint->schedule_step);
  for (const MicrobatchId id : recovered.checkpoint->accumulated) {
    if (accumulated_set_.insert(id).second) accumulated_ids_.push_back(id);
    recovered_ids_.emplace(id, std::nullopt);
  }
}

void Miner::on(miner_event::LocalStateExported& event) {
  computing_ = false;
  if (event.id == 0) {
    LocalCheckpoint about{.run_id = identity_.run_id,
                          .stage = assignment_->stage,
                          .epoch = epoch_,
                          .base = applied_ ? applied_->state : Digest{},
                          .steps = earlier_steps_ + local_steps_,
                          .schedule_step = schedule_step_,
                          .accumulated = {}};
    const size_t kept = std::min(accumulated_ids_.size(), kSavedIds);
    about.accumulated.assign(accumulated_ids_.end() - static_cast<std::ptrdiff_t>(kept),
                             accumulated_ids_.end());
    saved_accumulated_ = accumulated_;
    emit(BackgroundJob(miner_effect::SaveLocalState{std::move(about), event.state}));
    return;
  }
  if (event.id != checkpoint_begun_) return;
  // Not reported before the upload is done.
  pending_checkpoint_ = CheckpointCommit{.id = event.id,
                                         .object = {},
                                         .local_steps = local_steps_,
                                         .schedule_step = schedule_step_,
                                         .weight_version = weight_version_,
                                         .accumulated = accumulated_};
  emit(BackgroundJob(miner_effect::UploadLocalState{event.id, event.state}));
}

void Miner::on(miner_event::LocalStateUploaded& event) {
  if (!pending_checkpoint_ || pending_checkpoint_->id != event.id) return;
  if (!event.ok) {
    say(fmt::format("checkpoint {}: this miner's state could not be stored: {}", event.id,
                    event.why),
        true);
    pending_checkpoint_.reset();
    checkpoint_begun_ = 0;  // tried again if it is still asked for
    return;
  }
  checkpoint_ = pending_checkpoint_;
  checkpoint_->object = event.object;
  pending_checkpoint_.reset();
  urgent_ = true;
}

}  // namespace tessera::core
