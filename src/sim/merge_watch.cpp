#include "merge_watch.h"

namespace tessera::sim {

// A merge whose shards were handed out is over when the stage is at its epoch, or when it was aborted.
void MergeWatch::settle(const core::StageRecord& record, Stage* stage) {
  if (!stage->reducing) return;
  const Reducing& reducing = *stage->reducing;
  const bool merged = record.epoch >= reducing.target;
  if (!merged && record.merges_aborted == reducing.aborted) return;
  shards_ += reducing.shards;
  if (!merged) lost_ += reducing.shards;
  stage->reducing.reset();
}

void MergeWatch::look(const core::OrchestratorState& state) {
  stages_.resize(state.stages.size());
  for (size_t s = 0; s < state.stages.size(); ++s) {
    const core::StageRecord& record = state.stages[s];
    Stage& stage = stages_[s];
    settle(record, &stage);
    if (stage.reducing || (first_only_ && stage.seen)) continue;
    if (!record.merge || record.merge->phase != core::MergePhase::kReduce) continue;
    stage.seen = true;
    stage.reducing = Reducing{record.merge->target, record.merges_aborted, record.merge->shards.size()};
  }
}

void MergeWatch::transferred(uint64_t up, uint64_t down, bool uploaded) {
  bytes_up_ += up;
  bytes_down_ += down;
  uploads_ += uploaded;
}

void MergeWatch::fill(Result* result) const {
  result->shards = shards_;
  result->shards_lost_without_rescue = without_owner_;
  result->shards_lost = lost_;
  if (uploads_ == 0) return;
  result->bytes_up_per_miner = static_cast<double>(bytes_up_) / static_cast<double>(uploads_);
  result->bytes_down_per_miner = static_cast<double>(bytes_down_) / static_cast<double>(uploads_);
}

}  // namespace tessera::sim
