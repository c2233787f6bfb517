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

// A process that was not registered before takes the miner's place.
void Orchestrator::begin_incarnation(MinerIndex index, const Registration& registration, bool is_known) {
  MinerRecord& miner = state_.miners[index];
  if (is_known) {
    miner.live = miner.ready = false;  // its process is gone
    peers_changed(index);
    hurry(index);
    drop_from_merge(index, true);
    // It never came to use what the checkpoint holds of it: the new process may.
    if (miner.resumed) state_.resumable[registration.node] = *miner.resumed;
  }
  std::string reason;
  const std::optional<StageIndex> stage = stage_for(registration, miner.placed ? &miner : nullptr, &reason);
  MinerRecord fresh;
  fresh.index = index;
  fresh.stage = stage.value_or(0);
  fresh.placed = stage.has_value();
  fresh.ticket = miner.ticket;
  fresh.pinned = miner.pinned && fresh.placed;
  if (miner.placed && fresh.placed && miner.stage == fresh.stage) {
    fresh.own_times = miner.own_times;
    fresh.microbatch_us = miner.microbatch_us;
    fresh.place = miner.place;
  }
  fresh.counted = miner.counted;
  fresh.failed_verdicts = miner.failed_verdicts;
  fresh.in_flight = miner.in_flight;
  fresh.retired_incarnation = miner.retired_incarnation;
  if (const auto resumed = state_.resumable.find(registration.node); resumed != state_.resumable.end() && stage) {
    if (resumed->second.stage == *stage) {
      fresh.resumed = resumed->second;
      // All it did before counts as its step 0; what is in the partial gradient goes into step 1.
      const uint32_t partial = std::min(resumed->second.partial, resumed->second.fresh);
      if (resumed->second.fresh > partial) fresh.fresh[0] = resumed->second.fresh - partial;
      if (partial > 0) fresh.fresh[1] = partial;
      fresh.local_steps = 1;
    }
    state_.resumable.erase(resumed);
  }
  miner = std::move(fresh);
  if (stage) {
    leave_queue(miner);
  } else {
    enqueue(miner, reason);
  }
}

void Orchestrator::on(const MinerRegistered& event) {
  const Registration& registration = event.registration;
  const auto known = state_.by_node.find(registration.node);
  const bool is_known = known != state_.by_node.end();
  if (!is_known) forget_gone();
  const MinerIndex index = is_known ? known->second : state_.miners.add().index;
  if (!is_known) state_.by_node[registration.node] = index;
  const bool same_process = is_known && state_.miners[index].registration.incarnation == registration.incarnation;
  if (!same_process) begin_incarnation(index, registration, is_known);
  MinerRecord& miner = state_.miners[index];
  miner.registration = registration;
  miner.live = true;
  if (miner.placed) {
    miner.why = miner.ready ? "registered again" : "loading its stage";
    take_place(miner);
  }
  peers_changed(index);
  members_changed_ = true;
  say(fmt::format("miner {} ({}) at {} on {}: {}{}", index, registration.node.brief(), registration.address,
                  registration.device, miner.placed ? fmt::format("stage {}", miner.stage) : miner.why,
                  same_process ? ", same process again" : ""));
}

void Orchestrator::on(const MinerLost& event) {
  if (!state_.miners.has(event.miner)) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.live) return;
  miner.live = false;
  miner.lost_at = now_;
  miner.why = event.reason;
  members_changed_ = true;
  peers_changed(event.miner);
  say(fmt::format("miner {} of stage {} lost: {}", event.miner, miner.stage, event.reason), true);
  hurry(event.miner);
  drop_from_merge(event.miner, false);
}

// What becomes of the microbatches of a miner that is gone. Another head goes on with those it was the head of, in the same
// attempt and along the same pathway; a second head that dies with one costs an attempt. On the other stages the senders
// find a replacement by themselves: they get the time of a new lease for that.
void Orchestrator::hurry(MinerIndex miner) {
  for (const MicrobatchId id : index_.leases_of(miner)) {
    OpenMicrobatch& microbatch = state_.open.at(id);
    const bool head_is_gone = microbatch.pathway[0] == miner && (microbatch.counted_stages & 1) == 0;
    if (head_is_gone) {
      release(id, microbatch);
      microbatch.repair = !microbatch.repaired;
      state_.reissue.insert(id);
    } else {
      index_.remove_lease(id, microbatch);
      microbatch.deadline = std::min<TimeMs>(microbatch.deadline, now_ + lease_lifetime_ms());
      index_.add_lease(id, microbatch);
    }
  }
}

void Orchestrator::on(const MinerReturned& event) {
  if (!state_.miners.has(event.miner) || state_.miners[event.miner].live) return;
  MinerRecord& miner = state_.miners[event.miner];
  miner.live = true;
  miner.why = "answers again";
  if (miner.placed) take_place(miner);
  members_changed_ = true;
  peers_changed(event.miner);
  say(fmt::format("miner {} of stage {} answers again", event.miner, miner.stage));
}

// Whether a miner's word that it holds a state changes anything.
bool Orchestrator::is_news(const MinerRecord& miner, const MergeApplied& applied) const {
  if (!miner.placed) return false;
  const StageRecord& stage = state_.stages[miner.stage];
  const std::optional<Digest> expected = stage.state_at(applied.epoch);
  if (!expected) return false;  // of the future, or too old to go on from
  if (miner.ready && applied.epoch < miner.epoch) return false;  // an old report that came late
  if (miner.ready && applied.epoch == miner.epoch && applied.state == *expected) return false;
  if (applied.epoch == stage.epoch && applied.state != *expected && stage.disputants.count(miner.index) > 0) return false;
  // One that was found wrong is believed only when it holds what others hold.
  return !miner.must_download || applied.state == *expected;
}

void Orchestrator::on(const StateHeld& event) {
  if (!state_.miners.has(event.miner)) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.live || !is_news(miner, event.applied)) return;  // one that leaves is not waited for any more
  StageRecord& stage = state_.stages[miner.stage];
  if (event.applied.epoch == stage.epoch && stage.state.is_zero()) {
    stage.state = event.applied.state;
    stage.publisher_turn = 0;
    stage.publisher_asked_at = now_;
  }
  if (*stage.state_at(event.applied.epoch) != event.applied.state) {
    stage.replica_mismatches++;
    if (event.applied.epoch == stage.epoch && dispute(miner.stage, miner)) return;
    must_load(miner, fmt::format("its base at epoch {} differs from the stage's", event.applied.epoch));
    return;
  }
  miner.epoch = event.applied.epoch;
  miner.local_steps = std::max(miner.local_steps, event.applied.local_step);
  index_.update(state_, miner.index);
  if (!miner.ready) {
    // The load replaced its masters: the steps before are in them only if they came with the checkpoint.
    if (!miner.resumed) {
      miner.fresh.erase(miner.fresh.begin(), miner.fresh.lower_bound(event.applied.local_step));
      miner.unmerged_from = std::max(miner.unmerged_from, event.applied.local_step);
    }
    miner.resumed.reset();
    miner.carries_since = miner.epoch;
    miner.ready = true;
    audits().begin(miner.index, miner.registration.incarnation, miner.stage, miner.registration.device);
    miner.must_download = false;
    if (miner.assigned_stage == miner.stage) miner.assigned_stage.reset();  // it came back as the same process
    miner.why = "ready";
    members_changed_ = true;
    peers_changed(miner.index);
    say(fmt::format("miner {} of stage {} is ready at epoch {}", miner.index, miner.stage, miner.epoch));
  }
}

// The first word on a state stands until somebody contradicts it. Then neither is believed: what the merge gave can be made
// from the state before, which everyone held. False: not any more, or not at epoch 0, where the seed's word is all there is.
bool Orchestrator::dispute(StageIndex s, MinerRecord& miner) {
  StageRecord& stage = state_.stages[s];
  if (stage.settled || stage.past.empty() || stage.past.back().target != stage.epoch) return false;
  stage.disputants.insert(miner.index);
  miner.why = fmt::format("its base at epoch {} differs from the first one told; the orchestrator makes it to see who is right",
                          stage.epoch);
  say(fmt::format("miner {} of stage {}: {}", miner.index, s, miner.why), true);
  if (stage.remaking) return true;
  stage.remaking = true;
  effects_.remake.push_back(*pending_remake(s));
  return true;
}

std::optional<RemakeState> Orchestrator::pending_remake(StageIndex s) const {
  const StageRecord& stage = state_.stages[s];
  if (!stage.remaking) return std::nullopt;
  return RemakeState{.stage = s,
                     .stage_values = stage.values,
                     .past = stage.past.back(),
                     .merge = state_.spec.merge,
                     .rounding_key = merge_rounding_key(state_.run_id, s, stage.epoch)};
}

void Orchestrator::on(const StateRemade& event) {
  if (event.stage >= state_.stages.size()) return;
  StageRecord& stage = state_.stages[event.stage];
  if (!stage.remaking || event.epoch != stage.epoch) return;
  stage.remaking = false;
  stage.settled = true;
  const std::set<MinerIndex> disputants = std::move(stage.disputants);
  stage.disputants.clear();
  const std::vector<MinerIndex> places = index_.stage(event.stage).places;
  if (event.state.is_zero()) {
    say(fmt::format("stage {}: its state at epoch {} could not be made ({}); the first one told stands", event.stage, event.epoch,
                    event.why), true);
  } else if (event.state != stage.state) {
    stage.state = event.state;
    if (stage.merge) abort_merge(event.stage, "its replicas began from a wrong base");
    for (const MinerIndex index : places) {
      if (index == kNoMiner) continue;
      MinerRecord& miner = state_.miners[index];
      if (!miner.ready || miner.epoch != stage.epoch) continue;
      must_load(miner, fmt::format("its base at epoch {} is not what the merge gives", stage.epoch));
      index_.update(state_, index);
    }
  } else {
    say(fmt::format("stage {}: the state told first at epoch {} is what the merge gives", event.stage, event.epoch));
  }
  if (!event.state.is_zero()) {
    stage.state_published = true;
    stage.published_epoch = stage.epoch;
    stage.published_state = stage.state;
    members_changed_ = true;
  }
  forget_old_merges(stage);
  leave_behind(event.stage);
  // Who was right says so again with its next report; the others are found wrong by theirs.
  for (const MinerIndex index : disputants) state_.miners[index].why = "its base was in dispute";
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
  if (!state_.miners.has(event.miner)) return;
  if (!state_.miners[event.miner].placed) return;
  StageRecord& stage = state_.stages[state_.miners[event.miner].stage];
  if (event.epoch != stage.epoch || event.state != stage.state) return;
  stage.state_published = true;
  stage.published_epoch = event.epoch;
  stage.published_state = event.state;
  forget_old_merges(stage);
  leave_behind(state_.miners[event.miner].stage);
  members_changed_ = true;  // newcomers can have its state now
}

}  // namespace tessera::core
