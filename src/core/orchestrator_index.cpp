#include "tessera/core/orchestrator_index.h"

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr TimeMs kForgetMs = 24 * 3'600'000;
constexpr TimeMs kForgetIdleMs = 600'000;  // of one without a counted gradient
constexpr uint64_t kMicrosecondsPerHour = 3'600'000'000;

MinerFacts facts_of(const OrchestratorState& state, const MinerRecord& miner) {
  const StageRecord& stage = state.stages[miner.stage];
  MinerFacts facts;
  facts.stage = miner.stage;
  facts.live = miner.live && miner.placed;
  if (!miner.live) facts.forget_at = miner.lost_at + (miner.counted == 0 ? kForgetIdleMs : kForgetMs);
  const bool meant_for_another = miner.assigned_stage || miner.pending_stage;
  facts.staying = facts.live && !miner.drain && !meant_for_another;
  facts.moving = miner.placed && !miner.drain && meant_for_another;
  facts.place = miner.place;
  facts.ready = miner.live && miner.ready;
  if (!facts.ready) return facts;
  facts.behind = miner.epoch != stage.epoch;
  facts.uncommitted = !miner.checkpoint.has_value();
  facts.mergeable = miner.spoiled_merge != stage.epoch + 1;
  if (facts.mergeable && !facts.behind && !miner.fresh.empty()) {
    const uint32_t stepped = miner.stepped_total(state.spec.training.microbatches_per_step);
    facts.qualified = stepped >= state.spec.merge.min_microbatches;
    facts.qualified_for_last = stepped >= 1;
  }
  facts.microbatch_us = miner.microbatch_us;
  facts.in_flight = miner.in_flight;
  facts.counted = miner.counted;
  return facts;
}

template <class T>
void insert_sorted(std::vector<T>& items, const T& item) {
  items.insert(std::lower_bound(items.begin(), items.end(), item), item);
}

template <class T>
void erase_sorted(std::vector<T>& items, const T& item) {
  const auto found = std::lower_bound(items.begin(), items.end(), item);
  TESSERA_CHECK(found != items.end() && *found == item);
  items.erase(found);
}

uint64_t finish_us(const MinerFacts& facts) { return (uint64_t{facts.in_flight} + 1) * facts.microbatch_us; }

Neighbourhood& neighbourhood_of(StageSummary& stage, uint32_t place) {
  return stage.neighbourhoods[place % stage.neighbourhoods.size()];
}

}  // namespace

void OrchestratorIndex::rebuild(const OrchestratorState& state) {
  stages_.clear();
  stages_.resize(state.stages.size());
  for (StageSummary& stage : stages_) stage.neighbourhoods.resize(state.neighbourhoods);
  facts_.clear();
  gone_.clear();
  moving_ = 0;
  deadlines_.clear();
  leases_.clear();
  for (const MinerRecord& miner : state.miners) update(state, miner.index);
  for (const auto& [id, microbatch] : state.open) {
    if (microbatch.leased) add_lease(id, microbatch);
  }
  for (StageIndex s = 0; s < stages_.size(); ++s) update_shards(state, s);
}

void OrchestratorIndex::update(const OrchestratorState& state, MinerIndex miner) {
  const auto known = facts_.find(miner);
  const MinerRecord* record = state.miners.find(miner);
  if (record == nullptr) {
    if (known == facts_.end()) return;
    remove(miner, known->second);
    facts_.erase(known);
    return;
  }
  const MinerFacts facts = facts_of(state, *record);
  if (known != facts_.end()) {
    if (facts == known->second) return;
    remove(miner, known->second);
  }
  add(miner, facts);
  facts_.insert_or_assign(known, miner, facts);
}

void OrchestratorIndex::update_stage(const OrchestratorState& state, StageIndex stage) {
  for (const MinerIndex miner : std::vector<MinerIndex>(stages_[stage].places)) {
    if (miner != kNoMiner) update(state, miner);
  }
}

void OrchestratorIndex::add(MinerIndex miner, const MinerFacts& facts) {
  StageSummary& stage = stages_[facts.stage];
  if (facts.forget_at > 0) gone_.emplace(facts.forget_at, miner);
  stage.live += facts.live;
  stage.staying += facts.staying;
  moving_ += facts.moving;
  if (facts.place != kNoPlace) {
    while (stage.places.size() <= facts.place) {
      stage.vacant.insert(static_cast<uint32_t>(stage.places.size()));
      stage.places.push_back(kNoMiner);
    }
    stage.places[facts.place] = miner;
    if (facts.live) stage.vacant.erase(facts.place);
  }
  if (facts.ready) add_ready(miner, facts);
}

void OrchestratorIndex::remove(MinerIndex miner, const MinerFacts& facts) {
  StageSummary& stage = stages_[facts.stage];
  if (facts.forget_at > 0) gone_.erase({facts.forget_at, miner});
  stage.live -= facts.live;
  stage.staying -= facts.staying;
  moving_ -= facts.moving;
  if (facts.place != kNoPlace && stage.places[facts.place] == miner) {
    stage.places[facts.place] = kNoMiner;
    stage.vacant.insert(facts.place);
    while (!stage.places.empty() && stage.places.back() == kNoMiner) {
      stage.places.pop_back();
      stage.vacant.erase(static_cast<uint32_t>(stage.places.size()));
    }
  }
  if (facts.ready) remove_ready(miner, facts);
}

void OrchestratorIndex::add_ready(MinerIndex miner, const MinerFacts& facts) {
  StageSummary& stage = stages_[facts.stage];
  stage.ready++;
  stage.behind += facts.behind;
  stage.uncommitted += facts.uncommitted;
  stage.mergeable += facts.mergeable;
  stage.mergeable_behind += facts.mergeable && facts.behind;
  if (!facts.behind) stage.current.insert(miner);
  if (facts.qualified) stage.qualified.insert(miner);
  if (facts.qualified_for_last) stage.qualified_for_last.insert(miner);
  Neighbourhood& neighbourhood = neighbourhood_of(stage, facts.place);
  insert_sorted(neighbourhood.ready, miner);
  if (facts.microbatch_us > 0) {
    neighbourhood.measured.emplace(finish_us(facts), facts.counted, miner);
    insert_sorted(stage.speeds, facts.microbatch_us);
    stage.microbatches_per_hour += kMicrosecondsPerHour / facts.microbatch_us;
  } else {
    neighbourhood.unmeasured.emplace(facts.in_flight + 1, facts.counted, miner);
  }
}

void OrchestratorIndex::remove_ready(MinerIndex miner, const MinerFacts& facts) {
  StageSummary& stage = stages_[facts.stage];
  stage.ready--;
  stage.behind -= facts.behind;
  stage.uncommitted -= facts.uncommitted;
  stage.mergeable -= facts.mergeable;
  stage.mergeable_behind -= facts.mergeable && facts.behind;
  stage.current.erase(miner);
  stage.qualified.erase(miner);
  stage.qualified_for_last.erase(miner);
  Neighbourhood& neighbourhood = neighbourhood_of(stage, facts.place);
  erase_sorted(neighbourhood.ready, miner);
  if (facts.microbatch_us > 0) {
    neighbourhood.measured.erase({finish_us(facts), facts.counted, miner});
    erase_sorted(stage.speeds, facts.microbatch_us);
    stage.microbatches_per_hour -= kMicrosecondsPerHour / facts.microbatch_us;
  } else {
    neighbourhood.unmeasured.erase({facts.in_flight + 1, facts.counted, miner});
  }
}

void OrchestratorIndex::add_lease(MicrobatchId id, const OpenMicrobatch& microbatch) {
  deadlines_.emplace(microbatch.deadline, id);
  for (const MinerIndex miner : microbatch.pathway) leases_.emplace(miner, id);
}

void OrchestratorIndex::remove_lease(MicrobatchId id, const OpenMicrobatch& microbatch) {
  deadlines_.erase({microbatch.deadline, id});
  for (const MinerIndex miner : microbatch.pathway) leases_.erase({miner, id});
}

void OrchestratorIndex::update_shards(const OrchestratorState& state, StageIndex s) {
  StageSummary& summary = stages_[s];
  summary.undecided = summary.unsettled = 0;
  summary.owned.clear();
  const std::optional<Merge>& merge = state.stages[s].merge;
  if (!merge) return;
  for (uint32_t i = 0; i < merge->shards.size(); ++i) {
    const MergeShard& shard = merge->shards[i];
    summary.undecided += !shard.accepted;
    summary.unsettled += !shard.accepted && !shard.recomputing;
    summary.owned[merge->participants[shard.owner_a]].push_back(i);
    if (shard.owner_b != shard.owner_a) summary.owned[merge->participants[shard.owner_b]].push_back(i);
  }
}

void OrchestratorIndex::shard_moved(StageIndex s, uint32_t shard, MinerIndex from, MinerIndex to) {
  auto& owned = stages_[s].owned;
  auto& left = owned[from];
  left.erase(std::find(left.begin(), left.end(), shard));
  if (left.empty()) owned.erase(from);
  auto& taken = owned[to];
  taken.insert(std::lower_bound(taken.begin(), taken.end(), shard), shard);
}

std::vector<MicrobatchId> OrchestratorIndex::leases_of(MinerIndex miner) const {
  std::vector<MicrobatchId> ids;
  for (auto entry = leases_.lower_bound({miner, 0}); entry != leases_.end() && entry->first == miner; ++entry) {
    ids.push_back(entry->second);
  }
  return ids;
}

const Neighbourhood& OrchestratorIndex::inhabited(StageIndex s, uint32_t neighbourhood) const {
  const StageSummary& stage = stages_[s];
  const size_t count = stage.neighbourhoods.size();
  for (size_t i = 0; i < count; ++i) {
    const Neighbourhood& candidate = stage.neighbourhoods[(neighbourhood + i) % count];
    if (!candidate.ready.empty()) return candidate;
  }
  TESSERA_CHECK(false);
  return stage.neighbourhoods[0];
}

MinerIndex OrchestratorIndex::fastest(StageIndex s, uint32_t neighbourhood) const {
  const Neighbourhood& among = inhabited(s, neighbourhood);
  if (among.measured.empty()) return std::get<2>(*among.unmeasured.begin());
  if (among.unmeasured.empty()) return std::get<2>(*among.measured.begin());
  const auto& timed = *among.measured.begin();
  auto untimed = *among.unmeasured.begin();
  std::get<0>(untimed) *= stages_[s].median_us();
  return std::get<2>(std::min(timed, untimed));
}

const std::vector<MinerIndex>& OrchestratorIndex::choices(StageIndex s, uint32_t neighbourhood) const {
  return inhabited(s, neighbourhood).ready;
}

}  // namespace tessera::core
