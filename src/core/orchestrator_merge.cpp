// Merges of a stage: snapshot -> (freeze) reduce -> gate -> complete, or abort. docs/protocol.md draws it. The decision on
// each shard is in orchestrator_shards.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "tessera/base/prng.h"
#include "tessera/core/merge_gate.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {

namespace {

constexpr size_t kMaxPastMerges = 64;  // of a stage
// After a late upload, a miner's upload must be whole before the manifest in so many merges: else all the others would begin
// to reduce in vain each time.
constexpr uint32_t kMergesWholeFirst = 8;
constexpr uint32_t kPauseDoublings = 5;  // from the first pause between tries of a merge to the longest, a phase
constexpr uint32_t kLastMergeTries = 3;

}  // namespace

std::vector<UploadMeasure> Merge::sum_of_measures() const {
  std::vector<UploadMeasure> sums(participants.size());
  for (const MergeShard& shard : shards) {
    for (size_t i = 0; i < shard.measures.size() && i < sums.size(); ++i) sums[i].add(shard.measures[i]);
  }
  return sums;
}

uint32_t Merge::upload_rounds() const {
  return butterfly_rounds(static_cast<uint32_t>(std::min<size_t>(invited.size(), kMaxUploads)));  // more are in no manifest
}

bool Merge::uploads_are_whole() const {
  return std::all_of(participants.begin(), participants.end(),
                     [&](MinerIndex miner) { return uploads.at(miner).whole; });
}

void Orchestrator::consider_merges() {
  if (!state_.created || !state_.spec.merge.enabled) {
    for (StageRecord& stage : state_.stages) stage.final_merge_done = true;
    return;
  }
  const bool final = state_.phase == RunPhase::kMerging;
  if (state_.phase != RunPhase::kRunning && !final) return;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    StageRecord& stage = state_.stages[s];
    if (stage.merge || (final && stage.final_merge_done) || now_ < stage.merge_paused_until) continue;
    forgive_spoilers(s);
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

// Whose upload spoiled a try is left out of the next, for the others' sake. When nobody is left but such, they may try again.
void Orchestrator::forgive_spoilers(StageIndex s) {
  if (index_.stage(s).mergeable > 0 || index_.stage(s).ready == 0) return;
  for (const MinerIndex index : std::vector<MinerIndex>(index_.stage(s).places)) {
    if (index == kNoMiner || state_.miners[index].spoiled_merge != state_.stages[s].epoch + 1) continue;
    state_.miners[index].spoiled_merge = 0;
    index_.update(state_, index);
    say(fmt::format("stage {}: miner {}, whose upload spoiled the merge to epoch {}, may try again: nobody else can merge", s, index,
                    state_.stages[s].epoch + 1));
  }
}

void Orchestrator::start_merge(StageIndex s, std::set<MinerIndex> invited) {
  StageRecord& stage = state_.stages[s];
  stage.merge_paused_until = 0;
  Merge merge;
  merge.target = stage.epoch + 1;
  merge.deadline = now_ + state_.spec.timeouts.merge_phase_ms;
  merge.final = state_.phase == RunPhase::kMerging;
  merge.invited = std::move(invited);
  say(fmt::format("stage {} merges to epoch {}: {} miners take part", s, merge.target, merge.invited.size()));
  stage.merge = std::move(merge);
}

void Orchestrator::on(const UploadCommitted& event) {
  if (!state_.miners.has(event.miner)) return;
  const StageIndex s = state_.miners[event.miner].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge || merge->target != event.commit.target) return;
  if (const auto known = merge->uploads.find(event.miner); known != merge->uploads.end()) {
    if (known->second.object == event.commit.object && event.commit.whole) note_whole(s, event.miner);
    return;  // the first commitment binds
  }
  if (merge->phase != MergePhase::kSnapshot || merge->invited.count(event.miner) == 0) return;
  if (event.commit.again != state_.miners[event.miner].upload_again) return;  // the one that could not be read
  merge->uploads.emplace(event.miner, event.commit);
  state_.miners[event.miner].upload = merge->uploads.at(event.miner).object;
  if (event.commit.whole) audit_upload(state_.miners[event.miner], event.commit);
  const double quorum = state_.spec.merge.quorum * static_cast<double>(merge->invited.size());
  if (static_cast<double>(merge->uploads.size()) >= quorum - 1e-9) {
    merge->deadline = std::min(merge->deadline, now_ + state_.spec.timeouts.upload_grace_ms);
  }
  freeze_if_complete(s);
}

void Orchestrator::freeze_if_complete(StageIndex s) {
  const Merge& merge = *state_.stages[s].merge;
  const bool complete = merge.uploads.size() == merge.invited.size() &&  // only who is invited uploads
                        std::all_of(merge.uploads.begin(), merge.uploads.end(), [&](const auto& upload) {
                          return upload.second.whole || state_.miners[upload.first].whole_first == 0;
                        });
  if (complete) freeze(s);
}

// Every block of an upload is stored. When the last is, the reduction's time begins, and what waited for it is recomputed.
void Orchestrator::note_whole(StageIndex s, MinerIndex miner) {
  Merge& merge = *state_.stages[s].merge;
  if (std::exchange(merge.uploads.at(miner).whole, true)) return;
  audit_upload(state_.miners[miner], merge.uploads.at(miner));
  if (merge.phase == MergePhase::kSnapshot) return freeze_if_complete(s);
  const auto& participants = merge.participants;
  if (std::find(participants.begin(), participants.end(), miner) == participants.end()) return;
  const auto whole = std::count_if(participants.begin(), participants.end(),
                                   [&](MinerIndex other) { return merge.uploads.at(other).whole; });
  const auto& timeouts = state_.spec.timeouts;
  if (static_cast<size_t>(whole) == participants.size()) {
    merge.deadline = now_ + timeouts.merge_phase_ms;
    for (RecomputeShard& job : pending_recomputations(s)) effects_.recompute.push_back(std::move(job));
  } else if (static_cast<double>(whole) >= state_.spec.merge.quorum * static_cast<double>(participants.size()) - 1e-9) {
    merge.deadline = std::min(merge.deadline, now_ + timeouts.upload_grace_ms);
  }
}

// Whose upload is still on its way is left out, and the others' are reduced by another plan. No verdict: a slow link is no
// fault, and the work stays in the masters of its miner.
void Orchestrator::leave_out_unfinished(StageIndex s, const std::string& reason) {
  Merge& merge = *state_.stages[s].merge;
  for (const MinerIndex miner : merge.participants) {
    if (merge.uploads.at(miner).whole) continue;
    merge.uploads.erase(miner);
    state_.miners[miner].whole_first = kMergesWholeFirst;
    say(fmt::format("stage {} merge {}: the upload of miner {} is left out: {}", s, merge.target, miner, reason), true);
  }
  merge.round++;
  freeze(s);
}

void Orchestrator::complete_merge(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  if (!stage.merge || index_.stage(s).undecided > 0) return;
  if (!stage.merge->gate_decided && verify_for_gate(s)) return;
  stage.merge->measured = stage.merge->sum_of_measures();
  if (gate(s)) {
    stage.merge->round++;
    freeze(s);
    return;
  }
  Merge& merge = *stage.merge;
  const MergeSpec& spec = state_.spec.merge;
  const double warmth = stage.merges < spec.outer_momentum_warmup
                            ? static_cast<double>(stage.merges) / spec.outer_momentum_warmup
                            : 1.0;
  PastMerge past{.target = merge.target, .from = stage.state, .participants = merge.participants, .dropped = {}, .uploads = {}, .results = {},
                 .outer_learning_rate = spec.outer_learning_rate,
                 .outer_momentum = spec.outer_momentum * warmth};
  for (const MergeShard& shard : merge.shards) {
    if (shard.plan.block_count == 0) continue;
    past.results.push_back({shard.plan.first_block, shard.plan.block_count, *shard.accepted, shard.copies});
  }
  std::sort(past.results.begin(), past.results.end(),
            [](const ShardResult& a, const ShardResult& b) { return a.first_block < b.first_block; });
  for (uint32_t i = 0; i < merge.shards.size(); ++i) {
    const MergeShard& shard = merge.shards[i];
    if (shard.plan.block_count == 0 || shard.recomputing) continue;
    past.agreed.push_back({shard.plan.first_block, merge.first_shard + i, i, shard.copy_a->miner, shard.copy_b->miner});
  }
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    past.uploads.push_back({merge.uploads.at(merge.participants[p]).object, merge.weights[p]});
  }
  for (const MinerIndex index : merge.participants) {
    auto& fresh = state_.miners[index].fresh;
    const uint64_t through = merge.uploads.at(index).snapshot_step;
    fresh.erase(fresh.begin(), fresh.lower_bound(through));
    state_.miners[index].unmerged_from = std::max(state_.miners[index].unmerged_from, through);
    state_.miners[index].carries_since = merge.target;
    state_.miners[index].upload_again = 0;
  }
  for (const MinerIndex index : index_.stage(s).places) {
    if (index == kNoMiner) continue;
    MinerRecord& miner = state_.miners[index];
    if (miner.fresh.empty() || !miner.ready || miner.carries_since + spec.max_staleness >= merge.target) continue;
    past.dropped.push_back(index);
    miner.carries_since = merge.target;
    miner.fresh.clear();
    index_.update(state_, index);
    say(fmt::format("stage {} merge {}: miner {} carried work over more than {} merges; it is dropped", s, merge.target, index,
                    spec.max_staleness), true);
  }
  stage.past.push_back(std::move(past));
  retire_merge(s);
}

// What its owners committed becomes evidence that anyone can read; that of aborted tries at it too, whose entries have the same
// key.
void Orchestrator::unseal_merge(StageIndex s) {
  const Merge& merge = *state_.stages[s].merge;
  for (const char* kind : {ShardCommitted::kName, ShardRecomputed::kName}) {
    effects_.publish.push_back(SecretUnsealed{.kind = kind, .id = merge_seal_id(s, merge.target, state_.resumes), .key = {}});
  }
}

// The merge is over: the stage is at its epoch, and what was secret of it is no longer.
void Orchestrator::retire_merge(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  Merge& merge = *stage.merge;
  MergeRecord record{.target = merge.target, .participants = merge.participants, .counts = merge.counts, .norms = {},
                     .cosines = {}, .shards = {}};
  for (const UploadMeasure& measure : merge.measured) {
    record.norms.push_back(std::sqrt(std::max(measure.energy, 0.0)));
    record.cosines.push_back(measure.energy > 0 ? measure.alignment / measure.energy : 0.0);
  }
  const auto failed = [](OwnerOutcome outcome) { return outcome == OwnerOutcome::kMissing; };
  for (const MergeShard& shard : merge.shards) {
    record.shards.push_back({shard.plan.owner_a, shard.plan.owner_b, shard.outcome_a, shard.outcome_b, shard.sampled,
                             shard.recomputing});
    record.lost_without_rescue +=
        failed(shard.outcome_a) && (failed(shard.outcome_b) || shard.plan.owner_a == shard.plan.owner_b);
  }
  stage.merge_records.push_back(std::move(record));
  if (stage.merge_records.size() > kMaxMergeRecords) stage.merge_records.pop_front();
  stage.epoch = merge.target;
  stage.state = Digest{};
  stage.state_published = false;
  stage.disputants.clear();
  stage.remaking = stage.settled = false;
  stage.aborts_in_row = 0;
  stage.merge_paused_until = 0;
  stage.merges++;
  if (merge.final) stage.final_merge_done = true;
  say(fmt::format("stage {} is at epoch {}", s, stage.epoch));
  publish_pairings(s, merge);
  unseal_merge(s);
  stage.merge.reset();
  boundaries_.insert(s);
  forget_old_merges(stage);
  index_.update_shards(state_, s);
  index_.update_stage(state_, s);
  for (const MinerIndex index : index_.stage(s).places) {
    if (index != kNoMiner) state_.miners[index].upload.reset();
  }
  leave_behind(s);
}

// Who is too many merges behind to apply them all, or needs one that is forgotten, loads the stage again.
void Orchestrator::leave_behind(StageIndex s) {
  const StageRecord& stage = state_.stages[s];
  for (const MinerIndex index : std::vector<MinerIndex>(index_.stage(s).places)) {
    if (index == kNoMiner) continue;
    MinerRecord& miner = state_.miners[index];
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

// The same would happen again at once: the next try waits, each time twice as long. The run's last merge is not tried for ever.
void Orchestrator::fail_merge(StageIndex s, const std::string& reason) {
  StageRecord& stage = state_.stages[s];
  const bool is_final = stage.merge->final;
  abort_merge(s, reason);
  const TimeMs longest = state_.spec.timeouts.merge_phase_ms;
  const TimeMs pause = std::max<TimeMs>(1, longest >> kPauseDoublings) << std::min(stage.aborts_in_row, kPauseDoublings);
  stage.aborts_in_row++;
  stage.merge_paused_until = now_ + std::min(pause, longest);
  stage.final_merge_done = is_final && stage.aborts_in_row >= kLastMergeTries;
}

// A miner is gone, or starts anew: nothing waits for it. What a lost one uploaded still counts. A new process has other
// masters than the one whose upload it was, and counts its steps anew.
void Orchestrator::drop_from_merge(MinerIndex index, bool restarted) {
  const StageIndex s = state_.miners[index].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge) return;
  if (merge->phase == MergePhase::kSnapshot) {
    const auto upload = merge->uploads.find(index);
    if (upload != merge->uploads.end() && (restarted || !upload->second.whole)) merge->uploads.erase(upload);
    if (merge->uploads.count(index) > 0) return;
    if (merge->invited.erase(index) == 0) return;
    if (merge->invited.empty()) {
      fail_merge(s, "every participant is gone");
    } else {
      freeze_if_complete(s);
    }
    return;
  }
  if (const auto upload = merge->uploads.find(index); upload != merge->uploads.end()) {
    if (!upload->second.whole && std::find(merge->participants.begin(), merge->participants.end(), index) != merge->participants.end()) {
      return leave_out_unfinished(s, "its miner is gone");
    }
    if (restarted) upload->second.snapshot_step = 0;
  }
  if (const auto owned = index_.stage(s).owned.find(index); owned != index_.stage(s).owned.end()) {
    for (const uint32_t i : std::vector<uint32_t>(owned->second)) accept_if_settled(s, i);
  }
}

}  // namespace tessera::core
