// Miners' coming and going, and what they hold.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {

uint32_t MinerRecord::fresh_total() const {
  uint32_t total = 0;
  for (const auto& [step, count] : fresh) total += count;
  return total;
}

uint32_t MinerRecord::stepped_total(uint32_t microbatches_per_step) const {
  uint32_t total = 0;
  for (const auto& [step, count] : fresh) {
    if (step < local_steps || count >= microbatches_per_step) total += count;
  }
  return total;
}

// The name of the stage's state at `epoch`: zero if nobody held it yet, nothing if that is forgotten or never was.
std::optional<Digest> StageRecord::state_at(Epoch at) const {
  if (at == epoch) return state;
  for (const PastMerge& merge_then : past) {
    if (merge_then.target == at + 1) return merge_then.from;
  }
  return std::nullopt;
}

StageIndex Orchestrator::choose_stage(const Registration& registration) const {
  if (const auto resumed = state_.resumable.find(registration.node); resumed != state_.resumable.end()) {
    return resumed->second.stage;
  }
  if (registration.wanted_stage && *registration.wanted_stage < state_.stages.size()) {
    return *registration.wanted_stage;
  }
  const auto known = state_.by_node.find(registration.node);
  StageIndex best = 0;
  uint32_t fewest = UINT32_MAX;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    uint32_t live = index_.stage(s).live;
    if (known != state_.by_node.end()) {
      const MinerRecord& itself = state_.miners[known->second];
      live -= itself.live && itself.stage == s;
    }
    if (live < fewest) {
      fewest = live;
      best = s;
    }
  }
  return best;
}

void Orchestrator::on(const MinerRegistered& event) {
  const Registration& registration = event.registration;
  const auto known = state_.by_node.find(registration.node);
  MinerIndex index = 0;
  if (known == state_.by_node.end()) {
    index = static_cast<MinerIndex>(state_.miners.size());
    state_.miners.emplace_back();
    state_.miners.back().index = index;
    state_.by_node[registration.node] = index;
  } else {
    index = known->second;
  }
  MinerRecord& miner = state_.miners[index];
  const bool same_process = known != state_.by_node.end() && miner.registration.incarnation == registration.incarnation;
  if (!same_process) {
    if (known != state_.by_node.end()) {
      miner.live = miner.ready = false;  // its process is gone
      peers_changed(index);
      hurry(index);
      drop_from_merge(index, true);
      // It never came to use what the checkpoint holds of it: the new process may.
      if (miner.resumed) state_.resumable[registration.node] = *miner.resumed;
    }
    const bool stayed = known != state_.by_node.end() && state_.resumable.count(registration.node) == 0;
    const StageIndex stage = stayed && ready_count(miner.stage) < state_.spec.pipeline.miners_per_stage
                                 ? miner.stage
                                 : choose_stage(registration);
    MinerRecord fresh;
    fresh.index = index;
    fresh.stage = stage;
    fresh.counted = miner.counted;
    fresh.in_flight = miner.in_flight;
    fresh.retired_incarnation = miner.retired_incarnation;
    if (stage == miner.stage) fresh.place = miner.place;
    if (const auto resumed = state_.resumable.find(registration.node); resumed != state_.resumable.end()) {
      fresh.resumed = resumed->second;
      // All it did before counts as its step 0; what is in the partial gradient goes into step 1.
      const uint32_t partial = std::min(resumed->second.partial, resumed->second.fresh);
      if (resumed->second.fresh > partial) fresh.fresh[0] = resumed->second.fresh - partial;
      if (partial > 0) fresh.fresh[1] = partial;
      fresh.local_steps = 1;
      state_.resumable.erase(resumed);
    }
    miner = std::move(fresh);
  }
  miner.registration = registration;
  miner.live = true;
  miner.why = miner.ready ? "registered again" : "loading its stage";
  take_place(miner);
  peers_changed(index);
  say(fmt::format("miner {} ({}) at {} on {}: stage {}{}", index, registration.node.brief(), registration.address,
                  registration.device, miner.stage, same_process ? ", same process again" : ""));
}

void Orchestrator::on(const MinerLost& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.live) return;
  miner.live = false;
  miner.why = event.reason;
  peers_changed(event.miner);
  say(fmt::format("miner {} of stage {} lost: {}", event.miner, miner.stage, event.reason), true);
  hurry(event.miner);
  drop_from_merge(event.miner, false);
}

// The open microbatches of a miner that is gone may already be on their way through another one: they get a short while,
// then a new attempt.
void Orchestrator::hurry(MinerIndex miner) {
  const TimeMs soon = now_ + state_.spec.timeouts.peer_ms;
  for (const MicrobatchId id : index_.leases_of(miner)) {
    OpenMicrobatch& microbatch = state_.open.at(id);
    index_.remove_lease(id, microbatch);
    microbatch.deadline = std::min(microbatch.deadline, soon);
    index_.add_lease(id, microbatch);
  }
}

void Orchestrator::on(const MinerReturned& event) {
  if (event.miner >= state_.miners.size() || state_.miners[event.miner].live) return;
  MinerRecord& miner = state_.miners[event.miner];
  miner.live = true;
  miner.why = "answers again";
  take_place(miner);
  peers_changed(event.miner);
  say(fmt::format("miner {} of stage {} answers again", event.miner, miner.stage));
}

// Whether a miner's word that it holds a state changes anything.
bool Orchestrator::is_news(const MinerRecord& miner, const MergeApplied& applied) const {
  const StageRecord& stage = state_.stages[miner.stage];
  const std::optional<Digest> expected = stage.state_at(applied.epoch);
  if (!expected) return false;  // of the future, or too old to go on from
  if (miner.ready && applied.epoch < miner.epoch) return false;  // an old report that came late
  if (miner.ready && applied.epoch == miner.epoch && applied.state == *expected) return false;
  // One that was found wrong is believed only when it holds what others hold.
  return !miner.must_download || applied.state == *expected;
}

void Orchestrator::on(const StateHeld& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.live || !is_news(miner, event.applied)) return;  // one that leaves is not waited for any more
  StageRecord& stage = state_.stages[miner.stage];
  if (event.applied.epoch == stage.epoch && stage.state.is_zero()) stage.state = event.applied.state;
  if (*stage.state_at(event.applied.epoch) != event.applied.state) {
    stage.replica_mismatches++;
    must_load(miner, fmt::format("its base at epoch {} differs from the stage's", event.applied.epoch));
    return;
  }
  miner.epoch = event.applied.epoch;
  miner.local_steps = std::max(miner.local_steps, event.applied.local_step);
  index_.update(state_, miner.index);
  if (!miner.ready) {
    // The load replaced its masters: the steps before are in them only if they came with the checkpoint.
    if (!miner.resumed) miner.fresh.erase(miner.fresh.begin(), miner.fresh.lower_bound(event.applied.local_step));
    miner.resumed.reset();
    miner.ready = true;
    miner.must_download = false;
    miner.why = "ready";
    peers_changed(miner.index);
    say(fmt::format("miner {} of stage {} is ready at epoch {}", miner.index, miner.stage, miner.epoch));
  }
}

void Orchestrator::must_load(MinerRecord& miner, const std::string& reason) {
  const bool was_ready = miner.ready;
  miner.ready = false;
  miner.must_download = true;
  if (was_ready) peers_changed(miner.index);
  miner.why = reason + "; it must load the stage again";
  say(fmt::format("miner {} of stage {}: {}", miner.index, miner.stage, miner.why), true);
}

void Orchestrator::on(const StatePublished& event) {
  if (event.miner >= state_.miners.size()) return;
  StageRecord& stage = state_.stages[state_.miners[event.miner].stage];
  if (event.epoch != stage.epoch || event.state != stage.state) return;
  stage.state_published = true;
  stage.published_epoch = event.epoch;
  stage.published_state = event.state;
  forget_old_merges(stage);
}

}  // namespace tessera::core
