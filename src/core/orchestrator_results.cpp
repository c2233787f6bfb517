// Shards of complete merges that a replica can't have: both owners may have agreed on bytes that they never stored, or that
// nobody can make. The orchestrator looks at the copies, makes the shard from the manifest's uploads, and names both.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr size_t kMaxRechecks = 64;    // of a merge, under way
constexpr uint32_t kFalseAlarms = 4;   // of a miner about a merge; then it is not heard again
constexpr uint32_t kRecheckTries = 8;  // of a shard whose uploads could not be read either

ShardResult* result_at(PastMerge& past, uint64_t first_block) {
  for (ShardResult& result : past.results) {
    if (result.first_block == first_block) return &result;
  }
  return nullptr;
}

}  // namespace

PastMerge* Orchestrator::past_merge(StageIndex s, Epoch target) {
  for (PastMerge& past : state_.stages[s].past) {
    if (past.target == target) return &past;
  }
  return nullptr;
}

// Only who is to apply that merge next is heard, and only so often in vain.
bool Orchestrator::may_recheck(const MinerRecord& miner, const UnreadableResult& unreadable) const {
  if (!miner.placed || !miner.ready || miner.epoch + 1 != unreadable.target) return false;
  for (const PastMerge& past : state_.stages[miner.stage].past) {
    if (past.target != unreadable.target) continue;
    const auto alarms = past.false_alarms.find(miner.index);
    if (alarms != past.false_alarms.end() && alarms->second >= kFalseAlarms) return false;
    const bool is_there = std::any_of(past.results.begin(), past.results.end(), [&](const ShardResult& result) {
      return result.first_block == unreadable.first_block;
    });
    const auto under_way = std::count_if(past.rechecks.begin(), past.rechecks.end(), [](const auto& r) { return r.second.under_way; });
    const auto known = past.rechecks.find(unreadable.first_block);
    if (known != past.rechecks.end() && (known->second.under_way || known->second.settled || known->second.tries >= kRecheckTries)) return false;
    return is_there && static_cast<size_t>(under_way) < kMaxRechecks;
  }
  return false;
}

void Orchestrator::on(const ResultUnreadable& event) {
  if (!state_.miners.has(event.miner)) return;
  const MinerRecord& miner = state_.miners[event.miner];
  if (miner.stage != event.stage || !may_recheck(miner, {event.target, event.first_block})) return;
  PastMerge& past = *past_merge(event.stage, event.target);
  Recheck& recheck = past.rechecks[event.first_block];
  recheck.asked_by = event.miner;
  recheck.under_way = true;
  effects_.recheck.push_back(recheck_of(event.stage, past, *result_at(past, event.first_block)));
  say(fmt::format("stage {} merge {}: miner {} can't read the result that begins with block {}; the orchestrator looks at it",
                  event.stage, event.target, event.miner, event.first_block), true);
}

RecheckResult Orchestrator::recheck_of(StageIndex s, const PastMerge& past, const ShardResult& result) const {
  return {.stage = s,
          .target = past.target,
          .result = result,
          .uploads = past.uploads,
          .stage_values = state_.stages[s].values,
          .merge = state_.spec.merge,
          .rounding_key = merge_rounding_key(state_.run_id, s, past.target)};
}

std::vector<RecheckResult> Orchestrator::pending_rechecks(StageIndex s) const {
  std::vector<RecheckResult> jobs;
  for (const PastMerge& past : state_.stages[s].past) {
    for (const ShardResult& result : past.results) {
      const auto known = past.rechecks.find(result.first_block);
      if (known != past.rechecks.end() && known->second.under_way) jobs.push_back(recheck_of(s, past, result));
    }
  }
  return jobs;
}

void Orchestrator::on(const ResultRechecked& event) {
  if (event.stage >= state_.stages.size()) return;
  PastMerge* past = past_merge(event.stage, event.target);
  if (past == nullptr) return;
  const auto recheck = past->rechecks.find(event.first_block);
  ShardResult* result = result_at(*past, event.first_block);
  if (recheck == past->rechecks.end() || !recheck->second.under_way || result == nullptr) return;
  recheck->second.under_way = false;
  if (event.readable) {
    past->false_alarms[recheck->second.asked_by]++;
    say(fmt::format("stage {} merge {}: the result that begins with block {}, which miner {} can't read, can be read", event.stage,
                    event.target, event.first_block, recheck->second.asked_by), true);
    return;
  }
  if (event.result.is_zero()) {
    recheck->second.tries++;
    say(fmt::format("stage {} merge {}: the result that begins with block {} can't be read, and not be made: {}", event.stage,
                    event.target, event.first_block, event.why), true);
    return;
  }
  judge_agreed(event.stage, *past, *result, event.result);
  StageRecord& stage = state_.stages[event.stage];
  // Whoever was first to say what the merge gives can't have known it.
  if (event.result != result->result && past->target == stage.epoch) stage.settled = false;
  result->result = event.result;
  result->copies = {event.copy};
  recheck->second.settled = true;
}

// Both owners of a shard that was accepted because they agreed: what they stored is not what they committed, or what they
// committed is not what the uploads give.
void Orchestrator::judge_agreed(StageIndex s, PastMerge& past, const ShardResult& result, const Digest& expected) {
  const auto agreed = std::find_if(past.agreed.begin(), past.agreed.end(),
                                   [&](const AgreedShard& shard) { return shard.first_block == result.first_block; });
  if (agreed == past.agreed.end()) return;  // the orchestrator's own copy is gone
  const bool is_wrong = expected != result.result;
  for (const MinerIndex miner : {agreed->a, agreed->b}) {
    record_verdict(s, {.target = past.target,
                       .miner = miner,
                       .fault = is_wrong ? MergeFault::kWrongReduction : MergeFault::kUnreadableResult,
                       .first_block = result.first_block,
                       .block_count = result.block_count,
                       .shard = agreed->shard,
                       .committed = result.result,
                       .expected = expected});
    say(fmt::format("stage {} merge {} shard {}: miner {} {}", s, past.target, agreed->shard, miner,
                    is_wrong ? "agreed on a wrong reduction with the other owner" : "stored something else than it committed"), true);
  }
  for (MergeRecord& record : state_.stages[s].merge_records) {
    if (record.target != past.target || !is_wrong) continue;
    ShardRecord& shard = record.shards.at(agreed->place);
    shard.outcome_a = shard.outcome_b = OwnerOutcome::kWrong;
    shard.recomputed = true;
  }
  past.agreed.erase(agreed);
}

}  // namespace tessera::core
