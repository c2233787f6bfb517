#include "faults.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "tessera/core/merge_planes.h"

namespace tessera::sim {
namespace {

using config::Fault;
using config::FaultKind;

// Values of kFaultOver: a partition's mask, or this.
constexpr uint64_t kPauseOver = 0;
constexpr size_t kMaxNodes = 100000;

}  // namespace

void Faults::schedule() {
  for (size_t i = 0; i < world_.sim.faults.size(); ++i) {
    const Fault& fault = world_.sim.faults[i];
    if (fault.at_s) {
      world_.queue.push(kBeginUs + us_of_s(*fault.at_s), EventKind::kFault, 0, 0, i);
    } else {
      schedule_next(i);
    }
  }
  if (world_.sim.faults_until_s > 0) {
    world_.queue.push(kBeginUs + us_of_s(world_.sim.faults_until_s), EventKind::kFaultsEnd);
  }
}

void Faults::schedule_next(size_t index) {
  const Fault& fault = world_.sim.faults[index];
  const double pause_s = *fault.every_s * (0.5 + world_.random.uniform());
  const TimeUs at =
      std::max(world_.queue.now_us(), kBeginUs + us_of_s(fault.from_s)) + us_of_s(pause_s);
  const double until_s = fault.until_s ? *fault.until_s : world_.sim.faults_until_s;
  if (until_s > 0 && at >= kBeginUs + us_of_s(until_s)) return;
  world_.queue.push(at, EventKind::kFault, 0, 0, index);
}

Status Faults::handle(const Event& event) {
  if (event.kind == EventKind::kFaultsEnd) return mend_everything();
  if (event.kind == EventKind::kFaultOver) return over(event.value);
  if (world_.faults_over) return ok_status();
  const Fault& fault = world_.sim.faults[event.value];
  if (fault.every_s) schedule_next(event.value);
  return begin(fault);
}

TimeUs Faults::end_of(const Fault& fault) {
  const double seconds = fault.at_s ? fault.for_s : 2 * fault.for_s * world_.random.uniform();
  return world_.queue.now_us() + std::max<TimeUs>(1000, us_of_s(seconds));
}

std::vector<SimulatedMiner*> Faults::victims_of(const Fault& fault) {
  std::vector<SimulatedMiner*> able;
  for (const auto& miner : miners_) {
    if (!miner->alive() || (fault.stage && miner->stage() != *fault.stage)) continue;
    if (fault.kind == FaultKind::kFreeze && miner->frozen()) continue;
    if (fault.kind == FaultKind::kDrain && (miner->frozen() || miner->miner() == nullptr)) continue;
    able.push_back(miner.get());
  }
  size_t count = fault.count;
  if (fault.share)
    count = static_cast<size_t>(std::lround(*fault.share * static_cast<double>(able.size())));
  count = std::min(count, able.size());
  for (size_t i = 0; i < count; ++i)
    std::swap(able[i], able[i + world_.random.below(able.size() - i)]);
  able.resize(count);
  return able;
}

uint64_t Faults::take_mask() {
  for (uint64_t mask = 1; mask != 0; mask <<= 1) {
    if ((masks_in_use_ & mask) != 0) continue;
    masks_in_use_ |= mask;
    return mask;
  }
  return 0;  // 64 at a time are enough: this one does not take place
}

Status Faults::begin(const Fault& fault) {
  const TimeUs until = end_of(fault);
  switch (fault.kind) {
    case FaultKind::kJoin:
      world_.measures.fault(name_of(fault.kind), fault.count);
      for (uint32_t i = 0; i < fault.count && miners_.size() < kMaxNodes; ++i) add_miner();
      return ok_status();
    case FaultKind::kOrchestratorCrash:
      if (!orchestrator_.up()) return ok_status();
      world_.measures.fault(name_of(fault.kind), 0);
      orchestrator_.crash(until);
      return ok_status();
    case FaultKind::kPause:
      if (!orchestrator_.up()) return ok_status();
      world_.measures.fault(name_of(fault.kind), 0);
      world_.queue.push(until, EventKind::kFaultOver, 0, 0, kPauseOver);
      return orchestrator_.order("pause", "");
    case FaultKind::kCheckpoint:
      if (!orchestrator_.up()) return ok_status();
      world_.measures.fault(name_of(fault.kind), 0);
      return orchestrator_.order("checkpoint", "");
    case FaultKind::kOrder:
      if (!orchestrator_.up() || miners_.empty()) return ok_status();
      world_.measures.fault(name_of(fault.kind), 0);
      return give_order();
    default:
      break;
  }
  const uint64_t mask = fault.kind == FaultKind::kPartition ? take_mask() : 0;
  if (fault.kind == FaultKind::kPartition && mask == 0) return ok_status();
  const std::vector<SimulatedMiner*> victims = victims_of(fault);
  world_.measures.fault(name_of(fault.kind), static_cast<uint32_t>(victims.size()));
  for (SimulatedMiner* victim : victims) strike(fault, *victim, until, mask);
  if (mask != 0) world_.queue.push(until, EventKind::kFaultOver, 0, 0, mask);
  return ok_status();
}

// Of an operator with strange wishes: another stage for a miner, an end, another setting, other layer ranges.
Status Faults::give_order() {
  const uint64_t miner = world_.random.below(miners_.size());
  const auto stages = static_cast<uint32_t>(orchestrator_.state().stages.size());
  switch (world_.random.below(6)) {
    case 0:
    case 1:
      return orchestrator_.order("assign", fmt::format(R"({{"miner":"{}","stage":{}}})", miner,
                                                       world_.random.below(stages)));
    case 2:
      return orchestrator_.order("drain", fmt::format(R"({{"miner":"{}"}})", miner));
    case 3:
      return orchestrator_.order(
          "config", fmt::format(R"({{"key":"merge.min_microbatches","value":"{}"}})",
                                3 + world_.random.below(8)));
    default:
      break;
  }
  std::vector<uint32_t> layers(stages, 1);
  for (uint32_t left = world_.spec.model.layers - stages; left > 0; --left)
    layers[world_.random.below(stages)]++;
  std::string ranges;
  uint32_t first = 0;
  for (const uint32_t count : layers) {
    ranges += fmt::format("{}{}-{}", first == 0 ? "" : ",", first, first + count - 1);
    first += count;
  }
  return orchestrator_.order("stages", fmt::format(R"({{"layers":"{}"}})", ranges));
}

void Faults::strike(const Fault& fault, SimulatedMiner& victim, TimeUs until, uint64_t mask) {
  const TimeUs restart = fault.for_s > 0 ? until : kNever;
  if (fault.kind == FaultKind::kKill) {
    victim.kill(restart);
  } else if (fault.kind == FaultKind::kFreeze) {
    victim.freeze(until);
  } else if (fault.kind == FaultKind::kDrain) {
    victim.drain(restart);
  } else {
    world_.trace.line("cut {} {}", victim.node(), mask);
    victim.cut(mask, true);
  }
}

Status Faults::over(uint64_t mask) {
  if (mask == kPauseOver)
    return orchestrator_.up() ? orchestrator_.order("resume", "") : ok_status();
  if ((masks_in_use_ & mask) == 0) return ok_status();
  world_.trace.line("mend {}", mask);
  for (const auto& miner : miners_) miner->cut(mask, false);
  masks_in_use_ &= ~mask;
  return ok_status();
}

Status Faults::mend_everything() {
  world_.trace.line("faults end");
  world_.faults_over = true;
  world_.faults_over_us = world_.queue.now_us();
  for (uint64_t mask = 1; mask != 0; mask <<= 1) {
    if ((masks_in_use_ & mask) != 0) TESSERA_RETURN_IF_ERROR(over(mask));
  }
  if (!orchestrator_.up()) TESSERA_RETURN_IF_ERROR(orchestrator_.start());
  for (const auto& miner : miners_) {
    miner->thaw();
    miner->restart_if_down();
  }
  return orchestrator_.order("resume", "");
}

void Faults::strike_merges() {
  if (!orchestrator_.up()) return;
  const core::OrchestratorState& state = orchestrator_.state();
  struck_merges_.resize(state.stages.size());
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    StruckMerge& struck = struck_merges_[s];
    const auto& merge = state.stages[s].merge;
    if (struck.target > 0) {
      watch(s, &struck);
      continue;
    }
    if (!merge || merge->phase != core::MergePhase::kReduce) continue;
    struck.target = merge->target;
    std::vector<MinerIndex> participants = merge->participants;
    world_.random.shuffle(participants);
    participants.resize(static_cast<size_t>(
        std::lround(world_.sim.dead_share * static_cast<double>(participants.size()))));
    const std::set<MinerIndex> dead(participants.begin(), participants.end());
    for (const core::MergeShard& shard : merge->shards) {
      const bool a = dead.contains(merge->participants[shard.plan.owner_a]);
      const bool b = dead.contains(merge->participants[shard.plan.owner_b]);
      struck.shards += shard.plan.block_count > 0;
      shards_without_owner_ += shard.plan.block_count > 0 && a && b;
    }
    struck.lost = struck.shards;
    if (dead.empty()) continue;
    world_.measures.fault("kill", static_cast<uint32_t>(dead.size()));
    for (const MinerIndex miner : participants) {
      SimulatedMiner& victim = *miners_[node_of_key(state.miners[miner].registration.node) - 1];
      if (victim.alive()) victim.kill(kNever);
    }
  }
}

void Faults::watch(StageIndex s, StruckMerge* struck) const {
  const core::OrchestratorState& state = orchestrator_.state();
  const core::StageRecord& stage = state.stages[s];
  if (struck->over || stage.epoch < struck->target) return;
  struck->over = true;
  for (const core::PastMerge& past : stage.past) {
    if (past.target != struck->target) continue;
    uint64_t blocks = core::merged_blocks(world_.spec.merge, stage.values);
    for (const auto& result : past.results) blocks -= result.copies.empty() ? 0 : result.block_count;
    struck->lost = blocks == 0 ? 0 : struck->shards - std::min<uint64_t>(struck->shards, past.results.size());
  }
}

bool Faults::cheats(MinerIndex miner, const std::string& kind) const {
  const uint32_t node = node_of_key(orchestrator_.state().miners[miner].registration.node);
  if (node > world_.sim.cheaters.size()) return false;
  return kind.empty() || world_.sim.cheaters[node - 1] == kind;
}

bool Faults::owned_by_pair(StageIndex s, uint32_t shard) const {
  if (!orchestrator_.up()) return false;
  const auto& merge = orchestrator_.state().stages[s].merge;
  if (!merge || shard - merge->first_shard >= merge->shards.size()) return false;
  const core::MergeShard& owned = merge->shards[shard - merge->first_shard];
  for (const char* kind : {"pair", "forge", "slander"}) {
    if (cheats(merge->participants[owned.owner_a], kind) && cheats(merge->participants[owned.owner_b], kind)) return true;
  }
  return false;
}

void Faults::fill(Result* result) const {
  std::set<uint32_t> accused;
  const auto accuse = [&](MinerIndex miner) {
    const uint32_t node = node_of_key(orchestrator_.state().miners[miner].registration.node);
    if (accused.insert(node).second) result->falsely_accused += !cheats(miner, "");
    return node;
  };
  for (const core::StageRecord& stage : orchestrator_.state().stages) {
    for (const core::MergeVerdict& verdict : stage.merge_verdicts) accuse(verdict.miner);
  }
  for (const core::MinerRecord& miner : orchestrator_.state().miners) {
    if (miner.failed_verdicts == 0) continue;
    const uint32_t node = accuse(miner.index);
    result->falsely_voided += !cheats(miner.index, "") && !world_.liars.contains(node);
  }
  result->accused.assign(accused.begin(), accused.end());
  for (const StruckMerge& struck : struck_merges_) {
    result->shards += struck.shards;
    result->shards_lost += struck.lost;
  }
  result->shards_lost_without_rescue = shards_without_owner_;
}

}  // namespace tessera::sim
