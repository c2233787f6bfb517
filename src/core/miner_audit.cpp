// Commitments to this miner's state, for audits: at the begin of every epoch and every audit.segment_steps. One is under way
// at a time; training does not wait for it. A miner does the same whether or not it is audited.
#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {

// `weights_replaced`: by a merge or a load, just now. The segment before ends exactly there, if it can end now.
void Miner::begin_segment(bool weights_replaced) {
  if (!spec_.audit.enabled) return;
  if (segment_busy_) {
    segment_due_ = true;
    if (weights_replaced) segment_whole_ = false;
    return;
  }
  segment_busy_ = true;
  segment_due_ = false;
  // Before anything else that waits: no gradient and no step comes between.
  enqueue_first(miner_effect::ExportSegment{segment_number_ + 1});
}

void Miner::on(miner_event::SegmentExported& event) {
  computing_ = false;
  status_.segment_copy_us += static_cast<uint64_t>(event.milliseconds * 1000);
  SegmentCommit commit;
  commit.number = segment_number_ = event.number;
  commit.epoch = epoch_;
  commit.local_step = segment_step_ = local_steps_;
  commit.weight_version = weight_version_;
  commit.schedule_step = schedule_step_;
  commit.accumulated = accumulated_;
  commit.first_receipt = next_receipt_;
  commit.steps = std::exchange(segment_steps_, {});
  commit.whole = std::exchange(segment_whole_, true);
  emit(BackgroundJob(miner_effect::StoreSegment{std::move(commit), std::move(event.state), std::move(event.older)}));
}

void Miner::on(miner_event::SegmentStored& event) {
  if (event.commit.number != segment_number_) return;
  segment_ = std::move(event.commit);
  urgent_ = true;
}

void Miner::take_segment_answer(const SyncAnswer& answer) {
  if (!segment_ || answer.segment_known < segment_->number) return;
  segment_.reset();
  segment_busy_ = false;
  if (segment_due_) begin_segment(false);
}

void Miner::note_step(double learning_rate, uint32_t microbatches, bool skipped) {
  if (!spec_.audit.enabled || segment_number_ == 0) return;
  if (segment_steps_.size() >= kMaxSegmentSteps) {
    segment_whole_ = false;
    return;
  }
  segment_steps_.push_back({learning_rate, microbatches, skipped});
}

}  // namespace tessera::core
