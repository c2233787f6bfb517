#include "tessera/core/invariants.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tessera/core/merge_planes.h"

namespace tessera::core {
namespace {

std::string broken_work(const OrchestratorState& state) {
  std::map<MinerIndex, uint32_t> in_flight;
  const uint64_t all = state.stages.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << state.stages.size()) - 1;
  for (const auto& [id, open] : state.open) {
    if (id >= state.next_microbatch)
      return fmt::format("microbatch {} is open and was never leased", id);
    if (open.counted_stages >= all)
      return fmt::format("microbatch {} is complete and still open", id);
    if (open.leased == (state.reissue.count(id) > 0))
      return fmt::format("microbatch {} is leased and waits, or neither", id);
    if (!open.leased) continue;
    for (StageIndex s = 0; s < open.pathway.size(); ++s) {
      if ((open.counted_stages >> s & 1) == 0) in_flight[open.pathway[s]]++;
    }
  }
  for (const MicrobatchId id : state.reissue) {
    if (state.open.count(id) == 0) return fmt::format("microbatch {} waits and is not open", id);
  }
  if (state.done + state.open.size() != state.next_microbatch) {
    return fmt::format("{} done and {} open are not the {} leased", state.done, state.open.size(),
                       state.next_microbatch);
  }
  for (const MinerRecord& miner : state.miners) {
    if (miner.in_flight != in_flight[miner.index]) {
      return fmt::format("miner {} counts {} in flight, not {}", miner.index, miner.in_flight,
                         in_flight[miner.index]);
    }
  }
  return "";
}

std::string broken_merge(const OrchestratorState& state, const StageRecord& stage) {
  const Merge& merge = *stage.merge;
  if (merge.target != stage.epoch + 1) return "a merge skips an epoch";
  for (const auto& [miner, upload] : merge.uploads) {
    if (upload.target != merge.target) return "an upload is of another merge";
  }
  if (merge.phase == MergePhase::kSnapshot) {
    if (merge.invited.empty()) return "a merge waits for nobody";
    return merge.participants.empty() && merge.shards.empty() ? "" : "a manifest before the freeze";
  }
  const size_t n = merge.participants.size();
  if (n == 0 || merge.counts.size() != n || merge.weights.size() != n)
    return "a manifest of uneven lists";
  if (merge.shards.size() != (n == 1 ? 1 : n * (n - 1) / 2))
    return "a plan with a wrong number of shards";
  double sum = 0;
  for (const float weight : merge.weights) sum += weight;
  if (std::abs(sum - 1) > 1e-5) return "weights do not add up to 1";
  uint64_t next = 0;
  for (const MergeShard& shard : merge.shards) {
    if (shard.plan.first_block != next) return "the shards do not tile the stage";
    next += shard.plan.block_count;
  }
  return next == merged_blocks(state.spec.merge, stage.values) ? "" : "the shards do not cover the stage";
}

std::string broken_stage(const OrchestratorState& state, const StageRecord& stage) {
  const size_t needed =
      std::max<size_t>(state.spec.merge.max_staleness, stage.epoch - stage.published_epoch);
  if (stage.past.size() > std::min<size_t>(needed, 64)) return "too many past merges are kept";
  for (size_t i = 0; i < stage.past.size(); ++i) {
    if (stage.past[i].target != stage.epoch - (stage.past.size() - 1 - i))
      return "past merges are not consecutive";
  }
  if (stage.state_published &&
      (stage.published_epoch != stage.epoch || stage.published_state != stage.state)) {
    return "the published state is not the stage's";
  }
  return stage.merge ? broken_merge(state, stage) : "";
}

std::string broken_miner(const OrchestratorState& state, const MinerRecord& miner) {
  const auto known = state.by_node.find(miner.registration.node);
  if (known == state.by_node.end() || known->second != miner.index)
    return "it is not found by its key";
  if (miner.ready && miner.epoch > state.stages[miner.stage].epoch)
    return "it is ahead of its stage";
  if (miner.ready && !state.stages[miner.stage].state_at(miner.epoch))
    return "it is ready and can't catch up";
  if (miner.ready && miner.must_download) return "it is ready and must load";
  const auto waits = std::count(state.waiting.begin(), state.waiting.end(), miner.index);
  if (miner.placed && (waits != 0 || miner.ticket != 0)) return "it has a stage and waits for one";
  if (waits != (miner.ticket > 0 ? 1 : 0)) return "it is in the queue without a ticket, or the other way round";
  if (!miner.placed && (miner.ready || miner.assigned_stage)) return "it has no stage and is ready";
  if (miner.placed && state.stages[miner.stage].need_cpu_bytes > 0 && miner.registration.device == "cpu" &&
      miner.registration.memory_bytes > 0 && !state.restage &&
      miner.registration.memory_bytes < state.stages[miner.stage].need_cpu_bytes)
    return "its stage does not fit its memory";
  return "";
}

}  // namespace

std::string broken_invariant(const OrchestratorState& state) {
  if (std::string broken = broken_work(state); !broken.empty()) return broken;
  for (size_t s = 0; s < state.stages.size(); ++s) {
    const std::string broken = broken_stage(state, state.stages[s]);
    if (!broken.empty()) return fmt::format("stage {}: {}", s, broken);
  }
  for (const MinerRecord& miner : state.miners) {
    const std::string broken = broken_miner(state, miner);
    if (!broken.empty()) return fmt::format("miner {}: {}", miner.index, broken);
  }
  if (state.checkpoint_writing && state.phase != RunPhase::kCheckpointing)
    return "a checkpoint is written aside";
  return "";
}

std::string broken_invariant(const Orchestrator& orchestrator) {
  if (std::string broken = broken_invariant(orchestrator.state()); !broken.empty()) return broken;
  OrchestratorIndex index;
  index.rebuild(orchestrator.state());
  return index == orchestrator.index() ? "" : "the index is not the state's: an indexed change was not announced";
}

}  // namespace tessera::core
