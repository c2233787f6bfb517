// Who is told of whom. A peer table holds the miners of the two neighbouring stages that are in the miner's
// neighbourhood; a lease's pathway stays within the head's. Small stages are one neighbourhood: everybody sees everybody.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {

// A miner holds its place in the stage as long as it lives, and afterwards until a newcomer needs it: its neighbours still
// have it in their tables, should it answer them while it does not answer us.
void Orchestrator::take_place(MinerRecord& miner) {
  if (miner.place != kNoPlace) return;
  const StageSummary& stage = index_.stage(miner.stage);
  if (stage.vacant.empty()) {
    miner.place = static_cast<uint32_t>(stage.places.size());
    return;
  }
  const uint32_t place = *stage.vacant.begin();
  if (const MinerIndex before = stage.places[place]; before != kNoMiner) {
    MinerRecord& gone = state_.miners[before];
    gone.upload.reset();
    if (gone.ready) must_load(gone, "another miner took its place in the stage");
    gone.place = kNoPlace;
    index_.update(state_, before);
  }
  miner.place = place;
}

// The miner's record changed in something that its neighbours' tables show: everything else of it was written before.
void Orchestrator::peers_changed(MinerIndex miner) {
  const MinerRecord& record = state_.miners[miner];
  index_.update(state_, miner);
  if (!record.placed) return;  // in nobody's table
  auto& stamps = state_.stages[record.stage].peers_changed;
  stamps[record.place % stamps.size()] = ++state_.peers_version;
  resize_neighbourhoods(record.stage, record.place % state_.neighbourhoods);
}

// Doubles the number of neighbourhoods when the smallest stage has enough ready miners for that, halves it when too few are
// left, or a neighbourhood lost its last one. The thresholds are a factor of four apart, so that it does not change often.
void Orchestrator::resize_neighbourhoods(StageIndex stage, uint32_t changed) {
  uint64_t smallest = index_.stage(0).ready;
  for (const StageSummary& summary : index_.stages()) smallest = std::min<uint64_t>(smallest, summary.ready);
  const uint64_t most = state_.spec.pipeline.peers_per_miner;
  const uint32_t before = state_.neighbourhoods;
  const auto& neighbourhoods = index_.stage(stage).neighbourhoods;
  const bool deserted = neighbourhoods[changed].ready.empty() && index_.stage(stage).ready > 0;
  if (before > 1 && (4 * smallest < most * before || deserted)) {
    set_neighbourhoods(before / 2);
  } else if (smallest >= most * before) {
    set_neighbourhoods(2 * before);
    const bool uneven = std::any_of(index_.stages().begin(), index_.stages().end(), [](const StageSummary& summary) {
      return std::any_of(summary.neighbourhoods.begin(), summary.neighbourhoods.end(),
                         [](const Neighbourhood& neighbourhood) { return neighbourhood.ready.empty(); });
    });
    if (uneven) set_neighbourhoods(before);
  }
  if (state_.neighbourhoods != before) say(fmt::format("every stage has {} neighbourhoods", state_.neighbourhoods));
}

void Orchestrator::set_neighbourhoods(uint32_t count) {
  state_.neighbourhoods = count;
  ++state_.peers_version;
  for (StageRecord& stage : state_.stages) stage.peers_changed.assign(count, state_.peers_version);
  index_.rebuild(state_);
}

// When something that this miner's table shows changed last.
uint64_t Orchestrator::peers_version_of(const MinerRecord& miner) const {
  uint64_t version = 1;
  const auto consider = [&](StageIndex s) {
    const auto& stamps = state_.stages[s].peers_changed;
    version = std::max(version, stamps[miner.place % stamps.size()]);
  };
  if (miner.stage > 0) consider(miner.stage - 1);
  if (miner.stage + 1u < state_.stages.size()) consider(miner.stage + 1);
  return version;
}

std::vector<Peer> Orchestrator::peers_of(const MinerRecord& miner) const {
  std::vector<Peer> peers;
  const auto add = [&](StageIndex s) {
    const std::vector<MinerIndex>& places = index_.stage(s).places;
    for (size_t place = miner.place % state_.neighbourhoods; place < places.size(); place += state_.neighbourhoods) {
      if (places[place] == kNoMiner) continue;
      const MinerRecord& other = state_.miners[places[place]];
      peers.push_back({other.index, other.registration.node, other.stage, other.registration.address,
                       other.live && other.ready && !other.on_its_way_out(), other.registration.incarnation});
    }
  };
  if (miner.stage > 0) add(miner.stage - 1);
  if (miner.stage + 1u < state_.stages.size()) add(miner.stage + 1);
  return peers;
}

}  // namespace tessera::core
