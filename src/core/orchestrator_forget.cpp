// Records of miners that are long gone. What they did stays in the journal under their numbers, which nobody gets again; who
// comes back after that is a newcomer.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr size_t kLooks = 16;          // at records that may be in use, for one newcomer
constexpr size_t kForgottenAtOnce = 4; // more than one: records never pile up behind newcomers

}  // namespace

// Whether anything but the record itself still names the miner.
bool Orchestrator::is_in_use(const MinerRecord& miner) const {
  if (miner.live || miner.in_flight > 0 || miner.checkpoint || state_.phase == RunPhase::kCheckpointing || state_.restage) return true;
  const StageRecord& stage = state_.stages[miner.stage];
  if (stage.disputants.count(miner.index) > 0) return true;
  if (stage.merge && (stage.merge->invited.count(miner.index) > 0 || stage.merge->uploads.count(miner.index) > 0)) return true;
  return std::any_of(state_.audits.open.begin(), state_.audits.open.end(),
                     [&](const auto& audit) { return audit.second.task.miner == miner.index; });
}

std::vector<MinerIndex> Orchestrator::forgettable(size_t most) const {
  std::vector<MinerIndex> found;
  size_t looks = 0;
  for (const auto& [time, index] : index_.gone()) {
    if (time > now_ || found.size() == most || ++looks > kLooks) break;
    if (!is_in_use(state_.miners[index])) found.push_back(index);
  }
  return found;
}

void Orchestrator::forget_gone() {
  for (const MinerIndex index : forgettable(kForgottenAtOnce)) {
    MinerRecord& miner = state_.miners[index];
    leave_queue(miner);
    if (miner.place != kNoPlace) {
      auto& stamps = state_.stages[miner.stage].peers_changed;
      stamps[miner.place % stamps.size()] = ++state_.peers_version;
    }
    say(fmt::format("miner {} ({}) is gone for long; its record is forgotten", index, miner.registration.node.brief()));
    state_.by_node.erase(miner.registration.node);
    state_.audits.under_way.erase(index);
    effects_.forgotten.push_back({index, miner.registration.node});
    state_.miners.forget(index);
    index_.update(state_, index);
  }
}

}  // namespace tessera::core
