// The manifest of a merge: which uploads count, who reduces which shard of them, and which of them the gate leaves out.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tessera/base/prng.h"
#include "tessera/core/merge_gate.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {

// The uploads of a manifest, with their B_m. In a later round they are those of the first that are left: who starts
// anew meanwhile has no steps any more.
std::map<MinerIndex, uint32_t> Orchestrator::manifest_counts(StageIndex stage) {
  const Merge& merge = *state_.stages[stage].merge;
  std::map<MinerIndex, uint32_t> counts;
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    const MinerIndex index = merge.participants[p];
    if (merge.gated.count(index) == 0 && merge.uploads.count(index) > 0) counts[index] = merge.counts[p];
  }
  if (merge.round > 0) return counts;
  for (const auto& [index, upload] : merge.uploads) {
    uint32_t& whole_first = state_.miners[index].whole_first;
    if (whole_first > 0) {
      --whole_first;
      if (!upload.whole) continue;
    }
    for (const auto& [step, fresh] : state_.miners[index].fresh) {
      if (step < upload.snapshot_step) counts[index] += fresh;
    }
  }
  std::erase_if(counts, [](const auto& item) { return item.second == 0; });
  const size_t most = most_uploads(stage);
  if (counts.size() <= most) return counts;
  // Those beyond it carry their work over, and come first next time.
  std::vector<std::pair<Epoch, MinerIndex>> by_age;
  for (const auto& [index, count] : counts) by_age.emplace_back(state_.miners[index].carries_since, index);
  std::sort(by_age.begin(), by_age.end());
  for (size_t i = most; i < by_age.size(); ++i) counts.erase(by_age[i].second);
  return counts;
}

// A trimmed mean sorts every value of all uploads, and a large stage has as many shards as there are pairs.
size_t Orchestrator::most_uploads(StageIndex s) const {
  const uint64_t blocks = merged_blocks(state_.spec.merge, state_.stages[s].values);
  size_t most = kMaxUploads;
  if (blocks > kMaxResults) most = kMaxUploadsOfLargeStages;
  if (state_.spec.merge.trim_share > 0) most = std::min<size_t>(most, kMaxTrimmedUploads);
  return most;
}

// Ends the commit phase: the manifest is the uploads that are there, weighted by the microbatches that receipts confirm.
void Orchestrator::freeze(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  const std::map<MinerIndex, uint32_t> counts = manifest_counts(s);
  merge.participants.clear();
  merge.counts.clear();
  merge.weights.clear();
  uint64_t total = 0;
  for (const auto& [index, count] : counts) {
    merge.participants.push_back(index);
    merge.counts.push_back(count);
    total += count;
  }
  if (merge.participants.empty()) {
    fail_merge(s, merge.gated.empty() ? "no upload with counted microbatches" : "the gate left no upload");
    return;
  }
  for (const uint32_t count : merge.counts) {
    merge.weights.push_back(static_cast<float>(static_cast<double>(count) / static_cast<double>(total)));
  }
  plan_shards(s);
  say(fmt::format("stage {} merge {}: manifest of {} uploads, {} microbatches, {} shards", s, merge.target,
                  merge.participants.size(), total, merge.shards.size()));
  for (uint32_t i = 0; i < merge.shards.size(); ++i) accept_if_settled(s, i);
  complete_merge(s);
}

// Who owns which shard, and which shards are in the sample: secrets until the merge is over.
void Orchestrator::plan_shards(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  Merge& merge = *stage.merge;
  const uint64_t blocks = merged_blocks(state_.spec.merge, stage.values);
  const uint64_t seed = mix64(state_.draw_seed() ^ mix64(uint64_t{s} << 48 ^ merge.target)) ^ mix64(merge.round);
  merge.first_shard = static_cast<uint32_t>(mix64(seed ^ mix64(stage.merges_aborted + 1)));
  merge.shards.clear();
  merge.measured.clear();
  Prng sample(mix64(seed ^ mix64(~stage.merges_aborted)));
  for (const PlannedShard& plan : butterfly_plan(static_cast<uint32_t>(merge.participants.size()), blocks, seed)) {
    MergeShard shard;
    shard.plan = plan;
    shard.owner_a = plan.owner_a;
    shard.owner_b = plan.owner_b;
    shard.sampled = sample.uniform() < state_.spec.merge.sample_share;
    merge.shards.push_back(shard);
  }
  merge.phase = MergePhase::kReduce;
  merge.deadline = now_ + state_.spec.timeouts.merge_phase_ms;
  index_.update_shards(state_, s);
}

// The shards whose owners' word on the uploads is not to be taken, if what all of them say is to decide. True: some are
// recomputed first.
bool Orchestrator::verify_for_gate(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  std::vector<MeasuredShard> shards;
  const uint64_t gated_blocks = plane_blocks(state_.spec.merge, state_.stages[s].values);
  for (const MergeShard& shard : merge.shards) {
    shards.push_back({shard.measures, shard.recomputing, shard.plan.first_block >= gated_blocks});
  }
  const uint64_t draw = mix64(state_.draw_seed() ^ mix64(uint64_t{merge.first_shard} << 32 | merge.target));
  const std::vector<size_t> doubtful = shards_to_verify(shards, merge.participants.size(), state_.spec.merge, draw);
  if (doubtful.empty()) return false;
  for (const size_t i : doubtful) {
    MergeShard& shard = merge.shards[i];
    shard.accepted.reset();
    shard.copies.clear();
    for (OwnerOutcome* outcome : {&shard.outcome_a, &shard.outcome_b}) {
      if (*outcome == OwnerOutcome::kRight) *outcome = OwnerOutcome::kPending;
    }
  }
  index_.update_shards(state_, s);
  for (const size_t i : doubtful) recompute(s, static_cast<uint32_t>(i), "the gate depends on what its owners measured");
  return true;
}

// Decides on every upload, once, by what its owners measured. True: some are left out, and the others are reduced anew.
// Their work stays in the masters of those left out.
bool Orchestrator::gate(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  if (std::exchange(merge.gate_decided, true)) return false;
  for (const GateVerdict& verdict : gate_uploads(merge.measured, state_.spec.merge)) {
    const MinerIndex miner = merge.participants[verdict.upload];
    const UploadCommit& upload = merge.uploads.at(miner);
    merge.gated.insert(miner);
    state_.miners[miner].spoiled_merge = merge.target;
    state_.miners[miner].upload_again = state_.stages[s].merges_aborted + 1;
    index_.update(state_, miner);
    MergeVerdict record;
    record.target = merge.target;
    record.miner = miner;
    record.fault = verdict.fault;
    record.committed = upload.object;
    record.measure = verdict.measure;
    record.bound = verdict.bound;
    record.signature = upload.signature;
    record_verdict(s, record);
    say(fmt::format("stage {} merge {}: the upload of miner {} is left out: {} {:.4g}, the bound is {:.4g}", s, merge.target,
                    miner, name_of(verdict.fault), verdict.measure, verdict.bound), true);
  }
  return !merge.gated.empty();
}

}  // namespace tessera::core
