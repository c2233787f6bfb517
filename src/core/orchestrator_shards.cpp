// The decision on each shard of a merge: equal copies count, a missing owner is replaced by another participant, and what
// is in dispute, or in the secret sample, is recomputed from the manifest's uploads.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr size_t kMaxReplacements = 4;  // of a shard's owners; then the orchestrator's own processor does it

// The right to read one owner's copy. Nobody can tell one from random, or guess another from it.
Digest token_of(const OrchestratorState& state, const Merge& merge, StageIndex stage, uint32_t shard, MinerIndex owner) {
  Encoder encoder;
  encoder.write(std::string("tessera token 1"));
  encoder.write(state.draw_seed());
  encoder.write(state.run_id);
  encoder.write(stage);
  encoder.write(merge.target);
  encoder.write(shard);
  encoder.write(owner);
  return digest_of(encoder.take());
}

// Notes how a planned owner did; who took over is no planned owner.
void note(MergeShard& shard, uint32_t place, OwnerOutcome outcome) {
  OwnerOutcome* noted = place == shard.plan.owner_a   ? &shard.outcome_a
                        : place == shard.plan.owner_b ? &shard.outcome_b
                                                      : nullptr;
  if (noted != nullptr && *noted == OwnerOutcome::kPending) *noted = outcome;
}

// For the ledger, which has the evidence itself: the signed commitments (upload_committed, shard_committed) and the
// orchestrator's own reduction (shard_recomputed). What may be the fault of a disk or a link is never held against anybody.
Verdict ledger_verdict(StageIndex stage, const MergeVerdict& found) {
  Verdict verdict{.miner = found.miner, .stage = stage, .epoch = found.target - 1, .kind = VerdictKind::kMergeUpload,
                  .passed = false, .reason = {}, .evidence = {}};
  switch (found.fault) {
    case MergeFault::kWrongReduction:
      verdict.kind = VerdictKind::kMergeShard;
      verdict.reason = fmt::format("shard {} of the merge to epoch {}, blocks {} to {}: ", found.shard, found.target,
                                   found.first_block, found.first_block + found.block_count - 1) +
                       (found.committed == found.expected
                            ? fmt::format("its result {} is right, its measures of the uploads are not what the manifest's "
                                          "uploads give", found.committed.hex())
                            : fmt::format("it committed {}, the manifest's uploads give {}", found.committed.hex(),
                                          found.expected.hex()));
      break;
    case MergeFault::kUnavailableWithoutCause:
    case MergeFault::kUnreadableUpload:
    case MergeFault::kUnreadableResult:
      verdict.kind = VerdictKind::kInfrastructure;
      verdict.reason = fmt::format("{}: {}", name_of(found.fault), found.committed.hex());
      break;
    case MergeFault::kNotFinite:
    case MergeFault::kNorm:
    case MergeFault::kCosine:
      verdict.reason = fmt::format("its upload was left out: {} {:.4g}, the bound is {:.4g}", name_of(found.fault),
                                   found.measure, found.bound);
      break;
  }
  return verdict;
}

}  // namespace

std::vector<ShardTask> open_tasks(const OrchestratorState& state, const StageSummary& summary, const MinerRecord& miner) {
  std::vector<ShardTask> tasks;
  const Merge& merge = *state.stages[miner.stage].merge;
  const auto owned = summary.owned.find(miner.index);
  if (owned == summary.owned.end()) return tasks;
  for (const uint32_t i : owned->second) {
    const MergeShard& shard = merge.shards[i];
    if (shard.accepted || shard.plan.block_count == 0) continue;
    const bool owes_a = merge.participants[shard.owner_a] == miner.index && !shard.copy_a;
    const bool owes_b = shard.owner_b != shard.owner_a && merge.participants[shard.owner_b] == miner.index && !shard.copy_b;
    if (!owes_a && !owes_b) continue;
    const uint32_t number = merge.first_shard + i;
    tasks.push_back({number, shard.plan.first_block, shard.plan.block_count,
                     token_of(state, merge, miner.stage, number, miner.index)});
  }
  return tasks;
}

void Orchestrator::on(const ShardCommitted& event) {
  if (!state_.miners.has(event.miner)) return;
  const StageIndex s = state_.miners[event.miner].stage;
  auto& merge = state_.stages[s].merge;
  if (!merge || merge->phase != MergePhase::kReduce || merge->target != event.commit.target) return;
  const uint32_t index = event.commit.shard - merge->first_shard;
  if (index >= merge->shards.size()) return;
  MergeShard& shard = merge->shards[index];
  if (shard.accepted) return;
  // Of an upload that is still on its way that is no news.
  if (!event.commit.unavailable.is_zero() && !merge->uploads_are_whole()) return;
  const ShardCopy copy{event.miner, event.commit.result, event.commit.object, event.commit.unavailable,
                       digest_of(encode(event.commit.measures)), event.commit.signature};
  if (merge->participants[shard.owner_a] == event.miner && !shard.copy_a) {
    shard.copy_a = copy;
  } else if (merge->participants[shard.owner_b] == event.miner && !shard.copy_b) {
    shard.copy_b = copy;
  } else {
    return;
  }
  if (shard.measures.empty()) shard.measures = event.commit.measures;
  if (!copy.unavailable.is_zero() && !shard.recomputing) {
    recompute(s, index, "an owner says that it can't read an upload");
  }
  accept_if_settled(s, index);
  complete_merge(s);
}

// Decides a shard as soon as it can be decided. A lone copy is never taken on trust.
void Orchestrator::accept_if_settled(StageIndex s, uint32_t index) {
  Merge& merge = *state_.stages[s].merge;
  MergeShard& shard = merge.shards[index];
  if (shard.accepted || shard.recomputing) return;
  if (shard.plan.block_count == 0) {
    accept(s, index, Digest{}, {}, std::nullopt);
    return;
  }
  const auto is_gone = [&](uint32_t place) { return !state_.miners[merge.participants[place]].live; };
  if (shard.owner_a == shard.owner_b) {
    if (shard.copy_a || is_gone(shard.owner_a)) recompute(s, index, "it has one owner");
    return;
  }
  if (shard.copy_a && shard.copy_b) {
    if (!shard.copy_a->agrees_with(*shard.copy_b) || shard.measures.size() != merge.participants.size()) {
      recompute(s, index, "its owners disagree");
    } else if (shard.sampled) {
      recompute(s, index, "it is in the sample");
    } else {
      accept(s, index, shard.copy_a->result, shard.measures, std::nullopt);
    }
    return;
  }
  if (!shard.copy_a && is_gone(shard.owner_a) && !replace_owner(s, index, false)) return;
  if (!shard.copy_b && is_gone(shard.owner_b)) replace_owner(s, index, true);
}

// Gives one half of a shard to another participant. False: there is none, and the orchestrator recomputes it.
bool Orchestrator::replace_owner(StageIndex s, uint32_t index, bool second) {
  StageRecord& stage = state_.stages[s];
  Merge& merge = *stage.merge;
  MergeShard& shard = merge.shards[index];
  uint32_t& owner = second ? shard.owner_b : shard.owner_a;
  const uint32_t other = second ? shard.owner_a : shard.owner_b;
  note(shard, owner, OwnerOutcome::kMissing);
  std::vector<uint32_t> able;
  for (uint32_t place = 0; place < merge.participants.size(); ++place) {
    const MinerRecord& miner = state_.miners[merge.participants[place]];
    const bool passed = std::find(shard.passed.begin(), shard.passed.end(), place) != shard.passed.end();
    if (miner.live && miner.ready && miner.stage == s && place != owner && place != other && !passed) able.push_back(place);
  }
  if (able.empty() || shard.passed.size() >= kMaxReplacements) {
    recompute(s, index, "its owners are gone or late, and no participant is left to take over");
    return false;
  }
  const uint64_t draw = mix64(state_.draw_seed() ^ mix64(uint64_t{merge.first_shard} << 32 | index) ^ shard.passed.size());
  const uint32_t chosen = able[Prng(draw).below(able.size())];
  index_.shard_moved(s, index, merge.participants[owner], merge.participants[chosen]);
  shard.passed.push_back(owner);
  owner = chosen;
  stage.shards_rescued++;
  return true;
}

void Orchestrator::accept(StageIndex s, uint32_t index, const Digest& result, const std::vector<UploadMeasure>& measures,
                          std::optional<ResultCopy> recomputed) {
  Merge& merge = *state_.stages[s].merge;
  MergeShard& shard = merge.shards[index];
  shard.accepted = result;
  if (recomputed) shard.copies.push_back(*recomputed);
  for (const auto& copy : {shard.copy_a, shard.copy_b}) {
    if (!copy || copy->result != result || copy->object.is_zero()) continue;
    shard.copies.push_back({copy->object, token_of(state_, merge, s, merge.first_shard + index, copy->miner)});
  }
  const auto settle = [&](uint32_t place, const std::optional<ShardCopy>& copy) {
    note(shard, place, !copy                          ? OwnerOutcome::kMissing
                       : !copy->unavailable.is_zero() ? OwnerOutcome::kUnavailable
                       : copy->result == result       ? OwnerOutcome::kRight
                                                      : OwnerOutcome::kWrong);
  };
  if (shard.plan.block_count > 0) {
    settle(shard.owner_a, shard.copy_a);
    settle(shard.owner_b, shard.copy_b);
  }
  shard.measures = measures;
  index_.shard_accepted(s, shard.recomputing);
}

RecomputeShard Orchestrator::recomputation_of(StageIndex s, uint32_t index) const {
  const Merge& merge = *state_.stages[s].merge;
  const MergeShard& shard = merge.shards[index];
  const uint32_t number = merge.first_shard + index;
  RecomputeShard job{.stage = s,
                     .target = merge.target,
                     .shard = number,
                     .first_block = shard.plan.first_block,
                     .block_count = shard.plan.block_count,
                     .uploads = {},
                     .token = token_of(state_, merge, s, number, kNoMiner),
                     .stage_values = state_.stages[s].values,
                     .merge = state_.spec.merge,
                     .rounding_key = merge_rounding_key(state_.run_id, s, merge.target),
                     .resumes = state_.resumes};
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    job.uploads.push_back({merge.uploads.at(merge.participants[p]).object, merge.weights[p]});
  }
  return job;
}

void Orchestrator::recompute(StageIndex s, uint32_t index, const char* reason) {
  Merge& merge = *state_.stages[s].merge;
  merge.shards[index].recomputing = true;
  index_.shard_recomputing(s);
  // What is not there before all uploads are whole is nobody's fault yet.
  if (merge.uploads_are_whole()) effects_.recompute.push_back(recomputation_of(s, index));
  say(fmt::format("stage {} merge {} shard {}: {}; the orchestrator recomputes it", s, merge.target, index, reason));
}

std::vector<RecomputeShard> Orchestrator::pending_recomputations(StageIndex s) const {
  std::vector<RecomputeShard> jobs;
  if (!state_.stages[s].merge || !state_.stages[s].merge->uploads_are_whole()) return jobs;
  for (uint32_t i = 0; i < state_.stages[s].merge->shards.size(); ++i) {
    const MergeShard& shard = state_.stages[s].merge->shards[i];
    if (shard.recomputing && !shard.accepted) jobs.push_back(recomputation_of(s, i));
  }
  return jobs;
}

// The phase's time is over: whoever owes a copy is replaced, and gets one more phase.
void Orchestrator::settle_shards(StageIndex s) {
  Merge& merge = *state_.stages[s].merge;
  bool replaced = false;
  for (uint32_t i = 0; i < merge.shards.size(); ++i) {
    const MergeShard& shard = merge.shards[i];
    if (shard.accepted || shard.recomputing) continue;
    if (shard.owner_a == shard.owner_b) {
      recompute(s, i, "its only owner is late");
      continue;
    }
    if (!shard.copy_a) {
      if (!replace_owner(s, i, false)) continue;
      replaced = true;
    }
    if (!shard.copy_b) replaced |= replace_owner(s, i, true);
  }
  if (replaced) merge.deadline = now_ + state_.spec.timeouts.merge_phase_ms;
}

void Orchestrator::abort_unreadable(StageIndex s, uint32_t index, const std::vector<Digest>& unreadable) {
  Merge& merge = *state_.stages[s].merge;
  // The same upload would spoil this merge again: the others go on without whoever committed it.
  for (const auto& [miner, upload] : merge.uploads) {
    if (std::find(unreadable.begin(), unreadable.end(), upload.object) == unreadable.end()) continue;
    state_.miners[miner].spoiled_merge = merge.target;
    state_.miners[miner].upload_again = state_.stages[s].merges_aborted + 1;
    index_.update(state_, miner);
    MergeVerdict verdict;
    verdict.target = merge.target;
    verdict.miner = miner;
    verdict.fault = MergeFault::kUnreadableUpload;
    verdict.committed = upload.object;
    verdict.signature = upload.signature;
    record_verdict(s, std::move(verdict));
    say(fmt::format("stage {} merge {}: the upload of miner {} can't be read; it is left out", s, merge.target, miner), true);
  }
  const std::string reason = fmt::format("the uploads of shard {} are not all readable", index);
  const bool others_go_on = !unreadable.empty() && index_.stage(s).mergeable > 0;
  others_go_on ? abort_merge(s, reason) : fail_merge(s, reason);
}

void Orchestrator::on(const ShardRecomputed& event) {
  if (event.stage >= state_.stages.size()) return;
  StageRecord& stage = state_.stages[event.stage];
  if (!stage.merge || stage.merge->phase != MergePhase::kReduce || stage.merge->target != event.commit.target) return;
  Merge& merge = *stage.merge;
  const uint32_t index = event.commit.shard - merge.first_shard;
  if (index >= merge.shards.size()) return;
  MergeShard& shard = merge.shards[index];
  if (shard.accepted || !shard.recomputing) return;
  if (event.commit.result.is_zero()) {
    abort_unreadable(event.stage, index, event.unreadable);
    return;
  }
  stage.shards_recomputed++;
  const Digest measures = digest_of(encode(event.commit.measures));
  for (const auto& copy : {shard.copy_a, shard.copy_b}) {
    if (copy && (copy->result != event.commit.result || copy->measures != measures)) {
      judge(event.stage, index, *copy, event.commit.result);
    }
  }
  accept(event.stage, index, event.commit.result, event.commit.measures,
         ResultCopy{event.commit.object,
                    token_of(state_, merge, event.stage, event.commit.shard, kNoMiner)});
  complete_merge(event.stage);
}

void Orchestrator::judge(StageIndex s, uint32_t index, const ShardCopy& copy, const Digest& expected) {
  const Merge& merge = *state_.stages[s].merge;
  const MergeShard& shard = merge.shards[index];
  const bool unavailable = !copy.unavailable.is_zero();
  record_verdict(s, {.target = merge.target,
                     .miner = copy.miner,
                     .fault = unavailable ? MergeFault::kUnavailableWithoutCause : MergeFault::kWrongReduction,
                     .first_block = shard.plan.first_block,
                     .block_count = shard.plan.block_count,
                     .shard = merge.first_shard + index,
                     .committed = unavailable ? copy.unavailable : copy.result,
                     .expected = expected,
                     .signature = copy.signature});
  say(fmt::format("stage {} merge {} shard {}: miner {} {}", s, merge.target, index, copy.miner,
                  unavailable ? "called an upload unreadable that can be read" : "committed a wrong reduction"), true);
}

void Orchestrator::record_verdict(StageIndex s, MergeVerdict verdict) {
  effects_.publish.push_back(VerdictRecorded{ledger_verdict(s, verdict)});
  auto& verdicts = state_.stages[s].merge_verdicts;
  verdicts.push_back(std::move(verdict));
  if (verdicts.size() > kMaxMergeVerdicts) verdicts.pop_front();
}

}  // namespace tessera::core
