// A miner's part in its stage's merges. Training goes on meanwhile: every step here is a background job or a short compute
// job between two microbatches.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tessera/base/crypto.h"
#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr uint32_t kResultWaits = 64;  // answers that name the same results again, before they are tried again

// Every merge's participants have trained for so long on the moments of the one before. A newcomer that took them with a step
// count of its own, 0, would correct a bias that they do not have.
uint64_t moments_age(const RunSpec& spec, Epoch target) {
  return target * std::max<uint64_t>(1, spec.merge.min_microbatches / std::max(1u, spec.training.microbatches_per_step));
}

}  // namespace

void Miner::take_merge_directive(const std::optional<MergeDirective>& directive) {
  if (!directive) return;
  const MergeDirective& merge = *directive;
  if (merge.target != epoch_ + 1) return;
  switch (merge.phase) {
    case MergePhase::kSnapshot:
      if (snapshot_target_ == merge.target && merge.again == snapshot_again_) {
        // The same merge was asked for before and is known here; one that was aborted, but not because this upload could not
        // be read, is begun again with it.
        break;
      }
      snapshot_target_ = merge.target;
      snapshot_again_ = merge.again;
      upload_rounds_ = merge.rounds;
      upload_.reset();
      enqueue(miner_effect::TakeSnapshot{merge.target, spec_.merge.optimizer_moments == MergeMoments::kAverage});
      break;
    case MergePhase::kReduce: {
      if (!merge.sealed.empty() && std::exchange(sealed_heard_, merge.sealed_heard) != merge.sealed_heard) {
        emit(BackgroundJob(miner_effect::FetchSealed{merge.target, merge.sealed}));
      }
      if (reduce_target_ != merge.target) {
        reduce_target_ = merge.target;
        reducing_.clear();
        shards_.clear();
      }
      std::vector<ShardTask> tasks;
      for (const ShardTask& task : merge.tasks) {
        if (reducing_.insert(task.shard).second) tasks.push_back(task);
      }
      if (tasks.empty()) break;
      emit(BackgroundJob(miner_effect::ReduceShards{merge.target, std::move(tasks), merge.uploads, merge.rounds, merge.uploads_whole}));
      break;
    }
    case MergePhase::kApply:
      if (preparing_ == merge.target || waits_for_results(merge)) break;
      preparing_ = merge.target;
      unreadable_among_ = digest_of(encode(merge.results));
      emit(BackgroundJob(miner_effect::PrepareBase{merge.target, merge.uploads, merge.results, merge.participant,
                                                   merge.outer_learning_rate, merge.outer_momentum, merge.drop_carry}));
      break;
  }
}

// After a try that met unreadable results: until the orchestrator names others, or for a while.
bool Miner::waits_for_results(const MergeDirective& merge) {
  if (unreadable_results_.empty() || unreadable_results_.front().target != merge.target) return false;
  if (digest_of(encode(merge.results)) != unreadable_among_) return false;
  if (++waits_for_results_ < kResultWaits) return true;
  waits_for_results_ = 0;
  return false;
}

void Miner::on(miner_event::SnapshotTaken& event) {
  computing_ = false;
  if (event.target != snapshot_target_) return;
  snapshot_steps_ = earlier_steps_ + local_steps_;
  emit(BackgroundJob(miner_effect::UploadDelta{event.target, event.masters, local_steps_, event.weight_version, snapshot_again_,
                                               upload_rounds_, std::move(event.moments)}));
}

void Miner::on(miner_event::DeltaUploaded& event) {
  if (event.commit.target != snapshot_target_ || event.commit.again != snapshot_again_) return;
  if (!event.ok) {
    say(fmt::format("merge {}: the upload failed: {}", event.commit.target, event.why), true);
    snapshot_target_ = 0;  // tried again if it is still asked for
    return;
  }
  upload_ = event.commit;
  upload_->signature = identity_.sign(upload_->signed_bytes(identity_.run_id, assignment_->stage));
  urgent_ = true;
}

void Miner::on(miner_event::ShardReduced& event) {
  if (event.commit.target != reduce_target_) return;
  if (!event.ok) {
    say(fmt::format("merge {} shard {}: {}", event.commit.target, event.commit.shard, event.why), true);
    reducing_.erase(event.commit.shard);
    return;
  }
  shards_.push_back(event.commit);
  shards_.back().signature = identity_.sign(event.commit.signed_bytes(identity_.run_id, assignment_->stage));
  urgent_ = true;
}

void Miner::on(miner_event::BasePrepared& event) {
  if (event.target != preparing_) return;
  unreadable_results_.clear();
  for (const uint64_t first_block : event.unreadable) unreadable_results_.push_back({event.target, first_block});
  if (!event.ok) {
    say(fmt::format("merge {}: the result can't be had yet: {}", event.target, event.why), true);
    preparing_ = 0;
    if (!unreadable_results_.empty()) urgent_ = true;
    return;
  }
  pending_state_ = event.state;
  enqueue(miner_effect::ApplyBase{event.target, event.base, event.reference,
                                  spec_.merge.optimizer_moments == MergeMoments::kReset, std::move(event.moments),
                                  moments_age(spec_, event.target)});
}

void Miner::on(miner_event::BaseApplied& event) {
  computing_ = false;
  if (event.target != preparing_) return;
  // Counted as if every merge took this miner's snapshot; one that did not carries its steps over to the next.
  merged_steps_ = std::max(merged_steps_, snapshot_steps_);
  weight_version_ = event.weight_version;
  epoch_ = event.target;
  applied_ = MergeApplied{.epoch = epoch_, .state = pending_state_, .version_after = weight_version_, .local_step = local_steps_};
  upload_.reset();
  shards_.clear();
  reducing_.clear();
  published_state_.reset();
  unreadable_results_.clear();
  waits_for_results_ = 0;
  snapshot_target_ = reduce_target_ = preparing_ = 0;
  urgent_ = true;
  begin_segment(true);
  say(fmt::format("epoch {}: base {}", epoch_, pending_state_.brief()));
}

}  // namespace tessera::core
