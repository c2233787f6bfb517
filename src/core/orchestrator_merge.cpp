// Merges of a stage: snapshot -> (freeze) reduce -> complete, or abort. docs/protocol.md draws it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tessera/base/prng.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {

namespace {

constexpr size_t kMaxPastMerges = 64;  // of a stage

}  // namespace

void Orchestrator::consider_merges() {
  if (!state_.created || !state_.spec.merge.enabled) {
    for (StageRecord& stage : state_.stages) stage.final_merge_done = true;
    return;
  }
  const bool final = state_.phase == RunPhase::kMerging;
  if (state_.phase != RunPhase::kRunning && !final) return;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    StageRecord& stage = state_.stages[s];
    if (stage.merge || (final && stage.final_merge_done)) continue;
    const StageSummary& summary = index_.stage(s);
    const std::set<MinerIndex>& qualified = final ? summary.qualified_for_last : summary.qualified;
    if (final) {
      if (summary.mergeable_behind > 0) continue;  // it catches up with the merge before first
      if (qualified.empty()) {
        stage.final_merge_done = true;
      } else {
        start_merge(s, qualified);
      }
      continue;
    }
    if (qualified.empty()) continue;
    const auto needed = static_cast<uint32_t>(std::ceil(state_.spec.merge.quorum * summary.mergeable - 1e-9));
    if (qualified.size() >= std::max<uint32_t>(needed, 1)) start_merge(s, qualified);
  }
}

void Orchestrator::start_merge(StageIndex s, std::set<MinerIndex> invited) {
  StageRecord& stage = state_.stages[s];
  Merge merge;
  merge.target = stage.epoch + 1;
  merge.deadline = now_ + state_.spec.timeouts.merge_phase_ms;
  merge.final = state_.phase == RunPhase::kMerging;
  merge.invited = std::move(invited);
  say(fmt::format("stage {} merges to epoch {}: {} miners take part", s, merge.target, merge.invited.size()));
  stage.merge = std::move(merge);
}

void Orchestrator::on(const UploadCommitted& event) {
  if (event.miner >= state_.miners.size()) return;
  const StageIndex s = state_.miners[event.miner].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge || merge->phase != MergePhase::kSnapshot || merge->target != event.commit.target ||
      merge->invited.count(event.miner) == 0) {
    return;
  }
  merge->uploads.emplace(event.miner, event.commit);  // the first commitment binds
  state_.miners[event.miner].upload = merge->uploads.at(event.miner).object;
  const double quorum = state_.spec.merge.quorum * static_cast<double>(merge->invited.size());
  if (static_cast<double>(merge->uploads.size()) >= quorum - 1e-9) {
    merge->deadline = std::min(merge->deadline, now_ + state_.spec.timeouts.upload_grace_ms);
  }
  freeze_if_complete(s);
}

void Orchestrator::freeze_if_complete(StageIndex s) {
  const Merge& merge = *state_.stages[s].merge;
  if (merge.uploads.size() == merge.invited.size()) freeze(s);  // only who is invited uploads
}

// Ends the commit phase: the manifest is the uploads that are there, weighted by the microbatches that receipts confirm.
void Orchestrator::freeze(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  Merge& merge = *stage.merge;
  uint64_t total = 0;
  for (const auto& [index, upload] : merge.uploads) {
    uint32_t count = 0;
    for (const auto& [step, fresh] : state_.miners[index].fresh) {
      if (step < upload.snapshot_step) count += fresh;
    }
    if (count == 0) continue;
    merge.participants.push_back(index);
    merge.counts.push_back(count);
    total += count;
  }
  if (merge.participants.empty()) {
    abort_merge(s, "no upload with counted microbatches");
    return;
  }
  for (const uint32_t count : merge.counts) {
    merge.weights.push_back(static_cast<float>(static_cast<double>(count) / static_cast<double>(total)));
  }
  const uint64_t block = state_.spec.merge.block_values;
  const uint64_t blocks = (stage.values + block - 1) / block;
  const uint64_t seed = mix64(state_.secret ^ mix64(uint64_t{s} << 48 ^ merge.target));
  merge.first_shard = static_cast<uint32_t>(mix64(seed ^ mix64(stage.merges_aborted + 1)));
  for (const PlannedShard& plan :
       butterfly_plan(static_cast<uint32_t>(merge.participants.size()), blocks, seed)) {
    MergeShard shard;
    shard.plan = plan;
    merge.shards.push_back(shard);
  }
  merge.phase = MergePhase::kReduce;
  merge.deadline = now_ + state_.spec.timeouts.merge_phase_ms;
  say(fmt::format("stage {} merge {}: manifest of {} uploads, {} microbatches, {} shards", s, merge.target,
                  merge.participants.size(), total, merge.shards.size()));
  index_.update_shards(state_, s);
  for (uint32_t i = 0; i < merge.shards.size(); ++i) accept_if_settled(s, i);
  complete_merge(s);
}

void Orchestrator::on(const ShardCommitted& event) {
  if (event.miner >= state_.miners.size()) return;
  const StageIndex s = state_.miners[event.miner].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge || merge->phase != MergePhase::kReduce || merge->target != event.commit.target) return;
  const uint32_t index = event.commit.shard - merge->first_shard;
  if (index >= merge->shards.size()) return;
  MergeShard& shard = merge->shards[index];
  if (merge->participants[shard.plan.owner_a] == event.miner && !shard.copy_a) {
    shard.copy_a = event.commit.object;
  } else if (merge->participants[shard.plan.owner_b] == event.miner && !shard.copy_b) {
    shard.copy_b = event.commit.object;
  } else {
    return;
  }
  accept_if_settled(s, index);
  complete_merge(s);
}

// Decides a shard as soon as it can be decided: equal copies count; different ones, or one whose other owner is gone, are
// recomputed from the manifest's uploads. A lone copy is never taken on trust.
void Orchestrator::accept_if_settled(StageIndex s, uint32_t index) {
  Merge& merge = *state_.stages[s].merge;
  MergeShard& shard = merge.shards[index];
  if (shard.accepted || shard.recomputing) return;
  if (shard.plan.block_count == 0) {
    accept(s, index, Digest{});
    return;
  }
  const bool alone = shard.plan.owner_a == shard.plan.owner_b;
  if (alone) {
    if (shard.copy_a) accept(s, index, *shard.copy_a);
  } else if (shard.copy_a && shard.copy_b) {
    if (*shard.copy_a == *shard.copy_b) {
      accept(s, index, *shard.copy_a);
    } else {
      recompute(s, index, "its owners disagree");
    }
    return;
  }
  if (shard.accepted) return;
  const bool a_can = shard.copy_a || state_.miners[merge.participants[shard.plan.owner_a]].live;
  const bool b_can = shard.copy_b || state_.miners[merge.participants[shard.plan.owner_b]].live;
  if (!a_can || !b_can) recompute(s, index, "an owner is gone");
}

void Orchestrator::accept(StageIndex s, uint32_t index, const Digest& object) {
  MergeShard& shard = state_.stages[s].merge->shards[index];
  shard.accepted = object;
  index_.shard_accepted(s, shard.recomputing);
}

RecomputeShard Orchestrator::recomputation_of(StageIndex s, uint32_t index) const {
  const Merge& merge = *state_.stages[s].merge;
  const MergeShard& shard = merge.shards[index];
  RecomputeShard job{.stage = s,
                     .target = merge.target,
                     .shard = merge.first_shard + index,
                     .first_block = shard.plan.first_block,
                     .block_count = shard.plan.block_count,
                     .uploads = {},
                     .stage_values = state_.stages[s].values,
                     .block_values = state_.spec.merge.block_values};
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    job.uploads.push_back({merge.uploads.at(merge.participants[p]).object, merge.weights[p]});
  }
  return job;
}

void Orchestrator::recompute(StageIndex s, uint32_t index, const char* reason) {
  Merge& merge = *state_.stages[s].merge;
  merge.shards[index].recomputing = true;
  index_.shard_recomputing(s);
  effects_.recompute.push_back(recomputation_of(s, index));
  say(fmt::format("stage {} merge {} shard {}: {}; the orchestrator recomputes it", s, merge.target, index, reason), true);
}

std::vector<RecomputeShard> Orchestrator::pending_recomputations(StageIndex s) const {
  std::vector<RecomputeShard> jobs;
  if (!state_.stages[s].merge) return jobs;
  for (uint32_t i = 0; i < state_.stages[s].merge->shards.size(); ++i) {
    const MergeShard& shard = state_.stages[s].merge->shards[i];
    if (shard.recomputing && !shard.accepted) jobs.push_back(recomputation_of(s, i));
  }
  return jobs;
}

// The reduce phase is over: whatever is not agreed on is recomputed.
void Orchestrator::settle_shards(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  for (uint32_t i = 0; i < merge.shards.size(); ++i) {
    if (!merge.shards[i].accepted && !merge.shards[i].recomputing) recompute(s, i, "the phase's time is over");
  }
}

void Orchestrator::on(const ShardRecomputed& event) {
  if (event.stage >= state_.stages.size()) return;
  StageRecord& stage = state_.stages[event.stage];
  if (!stage.merge || stage.merge->phase != MergePhase::kReduce || stage.merge->target != event.commit.target) return;
  Merge& merge = *stage.merge;
  const uint32_t index = event.commit.shard - merge.first_shard;
  if (index >= merge.shards.size()) return;
  MergeShard& shard = merge.shards[index];
  if (shard.accepted) return;
  if (event.commit.object.is_zero()) {
    // The same upload would spoil this merge again: the others go on without whoever committed it.
    for (const auto& [index, upload] : merge.uploads) {
      const auto& unreadable = event.unreadable;
      if (std::find(unreadable.begin(), unreadable.end(), upload.object) == unreadable.end()) continue;
      state_.miners[index].spoiled_merge = merge.target;
      index_.update(state_, index);
      say(fmt::format("stage {} merge {}: the upload of miner {} can't be read; it is left out", event.stage, merge.target,
                      index), true);
    }
    abort_merge(event.stage, fmt::format("the uploads of shard {} are not all readable", index));
    return;
  }
  stage.shards_recomputed++;
  accept(event.stage, index, event.commit.object);
  const auto judge = [&](const std::optional<Digest>& copy, uint32_t owner) {
    if (!copy || *copy == event.commit.object) return;
    say(fmt::format("stage {} merge {} shard {}: miner {} committed a wrong reduction", event.stage, merge.target,
                    index, merge.participants[owner]), true);
  };
  judge(shard.copy_a, shard.plan.owner_a);
  judge(shard.copy_b, shard.plan.owner_b);
  complete_merge(event.stage);
}

void Orchestrator::complete_merge(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  if (!stage.merge) return;
  Merge& merge = *stage.merge;
  if (index_.stage(s).undecided > 0) return;
  PastMerge past{.target = merge.target, .from = stage.state, .participants = merge.participants, .results = {},
                 .outer_learning_rate = state_.spec.merge.outer_learning_rate,
                 .outer_momentum = state_.spec.merge.outer_momentum};
  for (const MergeShard& shard : merge.shards) {
    if (shard.plan.block_count == 0) continue;
    past.results.push_back({shard.plan.first_block, shard.plan.block_count, *shard.accepted});
  }
  std::sort(past.results.begin(), past.results.end(),
            [](const ShardResult& a, const ShardResult& b) { return a.first_block < b.first_block; });
  for (const MinerIndex index : merge.participants) {
    auto& fresh = state_.miners[index].fresh;
    fresh.erase(fresh.begin(), fresh.lower_bound(merge.uploads.at(index).snapshot_step));
  }
  stage.past.push_back(std::move(past));
  stage.epoch = merge.target;
  stage.state = Digest{};
  stage.state_published = false;
  stage.merges++;
  if (merge.final) stage.final_merge_done = true;
  say(fmt::format("stage {} is at epoch {}", s, stage.epoch));
  publish_pairings(s, merge);
  stage.merge.reset();
  boundaries_.insert(s);
  forget_old_merges(stage);
  index_.update_shards(state_, s);
  index_.update_stage(state_, s);
  for (const MinerIndex index : std::vector<MinerIndex>(index_.stage(s).places)) {
    if (index == kNoMiner) continue;
    MinerRecord& miner = state_.miners[index];
    miner.upload.reset();
    if (!miner.ready) continue;
    if (stage.epoch - miner.epoch <= state_.spec.merge.max_staleness && stage.state_at(miner.epoch)) continue;
    must_load(miner, fmt::format("it is at epoch {}, too old to catch up to {}", miner.epoch, stage.epoch));
  }
}

// Kept are max_staleness of them for stragglers, and those since the newest published state: with them a newcomer can build
// the stage's state when all its replicas died.
void Orchestrator::forget_old_merges(StageRecord& stage) {
  while (stage.past.size() > kMaxPastMerges || (stage.past.size() > state_.spec.merge.max_staleness &&
                                                stage.past.front().target <= stage.published_epoch)) {
    stage.past.pop_front();
  }
}

void Orchestrator::abort_merge(StageIndex s, const std::string& reason) {
  StageRecord& stage = state_.stages[s];
  say(fmt::format("stage {} merge {} aborted: {}; its base stays, nothing is lost", s, stage.merge->target, reason), true);
  stage.merges_aborted++;
  if (stage.merge->final) stage.final_merge_done = true;
  stage.merge.reset();
  index_.update_shards(state_, s);
}

// A miner is gone, or starts anew: nothing waits for it. What a lost one uploaded still counts. A new process has other
// masters than the one whose upload it was, and counts its steps anew.
void Orchestrator::drop_from_merge(MinerIndex index, bool restarted) {
  const StageIndex s = state_.miners[index].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge) return;
  if (merge->phase == MergePhase::kSnapshot) {
    if (restarted) merge->uploads.erase(index);
    if (merge->uploads.count(index) > 0) return;
    if (merge->invited.erase(index) == 0) return;
    if (merge->invited.empty()) {
      abort_merge(s, "every participant is gone");
    } else {
      freeze_if_complete(s);
    }
    return;
  }
  if (const auto upload = merge->uploads.find(index); restarted && upload != merge->uploads.end()) {
    upload->second.snapshot_step = 0;
  }
  if (const auto owned = index_.stage(s).owned.find(index); owned != index_.stage(s).owned.end()) {
    for (const uint32_t i : owned->second) accept_if_settled(s, i);
  }
}

}  // namespace tessera::core
