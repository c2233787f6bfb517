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

}  // namespace

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
  if (!state_.miners.has(event.miner)) return;
  const StageIndex s = state_.miners[event.miner].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge || merge->target != event.commit.target) return;
  if (const auto known = merge->uploads.find(event.miner); known != merge->uploads.end()) {
    if (known->second.object == event.commit.object && event.commit.whole) note_whole(s, event.miner);
    return;  // the first commitment binds
  }
  if (merge->phase != MergePhase::kSnapshot || merge->invited.count(event.miner) == 0) return;
  merge->uploads.emplace(event.miner, event.commit);
  state_.miners[event.miner].upload = merge->uploads.at(event.miner).object;
  audits().upload(event.miner, merge->uploads.at(event.miner));
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

// The uploads of a manifest, with their B_m. In a later round they are those of the first that are left: who starts
// anew meanwhile has no steps any more.
std::map<MinerIndex, uint32_t> Orchestrator::manifest_counts(const Merge& merge) {
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
  if (state_.spec.merge.trim_share == 0 || counts.size() <= kMaxTrimmedUploads) return counts;
  // A trimmed mean sorts every value of all uploads: there is a limit. Those beyond it carry their work over, and come first
  // next time.
  std::vector<std::pair<Epoch, MinerIndex>> by_age;
  for (const auto& [index, count] : counts) by_age.emplace_back(state_.miners[index].carries_since, index);
  std::sort(by_age.begin(), by_age.end());
  for (size_t i = kMaxTrimmedUploads; i < by_age.size(); ++i) counts.erase(by_age[i].second);
  return counts;
}

// Ends the commit phase: the manifest is the uploads that are there, weighted by the microbatches that receipts confirm.
void Orchestrator::freeze(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  const std::map<MinerIndex, uint32_t> counts = manifest_counts(merge);
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
    abort_merge(s, merge.gated.empty() ? "no upload with counted microbatches" : "the gate left no upload");
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
  const uint64_t block = state_.spec.merge.block_values;
  const uint64_t blocks = (stage.values + block - 1) / block;
  const uint64_t seed = mix64(state_.draw_seed() ^ mix64(uint64_t{s} << 48 ^ merge.target)) ^ mix64(merge.round);
  merge.first_shard = static_cast<uint32_t>(mix64(seed ^ mix64(stage.merges_aborted + 1)));
  merge.shards.clear();
  merge.measured.assign(merge.participants.size(), {});
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

void Orchestrator::complete_merge(StageIndex s) {
  StageRecord& stage = state_.stages[s];
  if (!stage.merge || index_.stage(s).undecided > 0) return;
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
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    past.uploads.push_back({merge.uploads.at(merge.participants[p]).object, merge.weights[p]});
  }
  for (const MinerIndex index : merge.participants) {
    auto& fresh = state_.miners[index].fresh;
    const uint64_t through = merge.uploads.at(index).snapshot_step;
    fresh.erase(fresh.begin(), fresh.lower_bound(through));
    state_.miners[index].unmerged_from = std::max(state_.miners[index].unmerged_from, through);
    state_.miners[index].carries_since = merge.target;
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
      abort_merge(s, "every participant is gone");
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
