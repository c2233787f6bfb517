// Orders of operators beyond pause and resume: assignments, drains, changes of the specification and of the stages.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"
#include "tessera/core/run_changes.h"
#include "tessera/core/stage_layout.h"

namespace tessera::core {

// ---- assign and drain -----------------------------------------------------------------------------------------------

StatusOr<std::optional<Event>> Orchestrator::assign_order(MinerIndex index, StageIndex stage, bool force) const {
  if (!state_.miners.has(index)) {
    return not_found("there is no miner {}; 'tesseractl miners' lists those of this run", index);
  }
  if (stage >= state_.stages.size()) {
    return invalid_argument("there is no stage {}: the run has the stages 0 to {}", stage, state_.stages.size() - 1);
  }
  const MinerRecord& miner = state_.miners[index];
  if (!fits_stage(miner.registration, stage)) {
    return failed_precondition("{}", misfit(state_.spec, stage, miner.registration.device, miner.registration.memory_bytes));
  }
  if (!has_state(stage)) return failed_precondition("nobody has the state of stage {}: resume the run from a checkpoint", stage);
  const StageIndex goal = miner.assigned_stage.value_or(miner.pending_stage.value_or(miner.stage));
  if (miner.placed && miner.pinned && goal == stage) return std::optional<Event>();
  if (miner.placed && miner.stage != stage && !force) {
    const bool others = std::any_of(state_.miners.begin(), state_.miners.end(), [&](const MinerRecord& other) {
      return other.index != index && other.placed && other.live && other.ready && other.stage == miner.stage &&
             !other.on_its_way_out() && !other.pending_stage;
    });
    if (!others) {
      return failed_precondition("stage {} would be left without a ready miner, and the run stand still until another holds it; "
                                 "add one first, or use --force", miner.stage);
    }
  }
  const auto staying = std::count_if(state_.miners.begin(), state_.miners.end(), [&](const MinerRecord& other) {
    return other.placed && other.stage == miner.stage && !other.on_its_way_out() && !other.pending_stage;
  });
  const bool checkpoints = state_.phase == RunPhase::kDraining || state_.phase == RunPhase::kCheckpointing;
  const bool waits = (checkpoints ? state_.after_checkpoint : state_.phase) == RunPhase::kWaiting;
  if (waits && miner.placed && miner.stage != stage && !force &&
      staying <= state_.spec.pipeline.miners_per_stage) {
    return failed_precondition("the run waits for pipeline.miners_per_stage {} miners of stage {}, and would have fewer; add one "
                               "first, or use --force", state_.spec.pipeline.miners_per_stage, miner.stage);
  }
  return std::optional<Event>(MinerAssigned{index, stage});
}

void Orchestrator::on(const MinerAssigned& event) {
  if (!state_.miners.has(event.miner) || event.stage >= state_.stages.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  miner.pinned = true;
  miner.assigned_stage.reset();
  miner.pending_stage.reset();
  members_changed_ = true;
  if (!miner.placed) {
    leave_queue(miner);
    miner.stage = event.stage;
    miner.placed = true;
    miner.why = "loading its stage";
    take_place(miner);
    peers_changed(event.miner);
  } else if (miner.stage != event.stage) {
    miner.pending_stage = event.stage;
    miner.why = fmt::format("goes to stage {} at the next epoch boundary: assigned by an operator", event.stage);
  }
  index_.update(state_, event.miner);
  say(fmt::format("miner {} is assigned to stage {} by an operator", event.miner, event.stage));
}

StatusOr<std::optional<Event>> Orchestrator::drain_order(MinerIndex index) const {
  if (!state_.miners.has(index)) {
    return not_found("there is no miner {}; 'tesseractl miners' lists those of this run", index);
  }
  const MinerRecord& miner = state_.miners[index];
  if (miner.drain) return std::optional<Event>();
  if (!miner.live) return failed_precondition("miner {} is not there: {}", index, miner.why);
  return std::optional<Event>(DrainOrdered{index});
}

void Orchestrator::on(const DrainOrdered& event) {
  if (!state_.miners.has(event.miner)) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (miner.drain) return;
  miner.drain = true;
  miner.why = "drains: sent away by an operator";
  leave_queue(miner);
  peers_changed(event.miner);
  members_changed_ = true;
  say(fmt::format("miner {} of stage {} drains: sent away by an operator", event.miner, miner.stage));
}

// ---- the specification ----------------------------------------------------------------------------------------------

StatusOr<std::optional<Event>> Orchestrator::spec_order(const std::string& key, const std::string& value) const {
  if (state_.phase == RunPhase::kFinished) return failed_precondition("the run is finished");
  if (state_.restage) return failed_precondition("the run's stages are being changed; try again when it is running");
  RunSpec changed = state_.spec;
  TESSERA_RETURN_IF_ERROR(set_key(&changed, key, value));
  if (encode(changed) == encode(state_.spec)) return std::optional<Event>();
  for (const MinerRecord& miner : state_.miners) {
    if (!miner.placed || !miner.live || changed.pipeline.max_in_flight <= state_.spec.pipeline.max_in_flight) continue;
    const Registration& registration = miner.registration;
    if (fits(changed, miner.stage, registration.device, registration.memory_bytes)) continue;
    return failed_precondition("{}: miner {} would no longer fit: {}", key, miner.index,
                               misfit(changed, miner.stage, registration.device, registration.memory_bytes));
  }
  return std::optional<Event>(SpecChanged{encode(changed), key, value});
}

void Orchestrator::on(const SpecChanged& event) {
  RunSpec changed;
  TESSERA_CHECK(decode(event.run_spec, &changed));
  const uint64_t every = changed.checkpoint.every_microbatches;
  if (every != state_.spec.checkpoint.every_microbatches) {
    state_.checkpoint_at = every == 0 ? 0 : (state_.done / every + 1) * every;
  }
  state_.spec = std::move(changed);
  state_.spec_version++;
  if (event.key.starts_with("training.")) audits().schedule_changed();
  refresh_needs();
  index_.rebuild(state_);  // who qualifies for a merge may have changed
  say(fmt::format("{} is {} from now on", event.key, event.value));
}

// ---- the stages -----------------------------------------------------------------------------------------------------

StatusOr<std::optional<Event>> Orchestrator::stages_order(const std::vector<uint32_t>& stage_layers) const {
  if (state_.restage) return failed_precondition("the run's stages are being changed already");
  if (stage_layers == state_.spec.pipeline.stage_layers) return std::optional<Event>();
  if (stage_layers.size() != state_.stages.size()) {
    return invalid_argument("{} stages for a run with {}; their number can't change in a running run", stage_layers.size(),
                            state_.stages.size());
  }
  if (!state_.spec.merge.enabled) {
    return failed_precondition("merge.enabled is false: the miners of a stage have no state in common that could be cut anew");
  }
  if (state_.phase != RunPhase::kRunning) {
    return failed_precondition("the run is {}; stages can be changed while it is running", name_of(state_.phase));
  }
  RunSpec changed = state_.spec;
  changed.pipeline.stage_layers = stage_layers;
  TESSERA_RETURN_IF_ERROR(validate(&changed));
  for (const MinerRecord& miner : state_.miners) {
    const Registration& registration = miner.registration;
    if (!miner.placed || !miner.live || fits(changed, miner.stage, registration.device, registration.memory_bytes)) continue;
    return failed_precondition("miner {} would not fit: {}", miner.index,
                               misfit(changed, miner.stage, registration.device, registration.memory_bytes));
  }
  return std::optional<Event>(StagesOrdered{stage_layers});
}

void Orchestrator::on(const StagesOrdered& event) {
  if (state_.restage || state_.phase != RunPhase::kRunning) return;
  state_.restage = Restage{.id = ++state_.restage_id, .stage_layers = event.stage_layers, .writing = false};
  state_.after_checkpoint = RunPhase::kRunning;
  say(fmt::format("the layers of the stages change to {}: the run drains and merges first", fmt::join(event.stage_layers, ", ")));
  enter(RunPhase::kDraining, now_ + state_.spec.timeouts.lease_ms);
}

// Draining -> merging -> restaging. Nothing may be open then: a microbatch whose stages are half counted would count some
// layers twice or never in the new ones. Whatever takes too long leaves everything as it was.
void Orchestrator::advance_restage(bool late) {
  const TimeMs patience = 3 * TimeMs{state_.spec.timeouts.merge_phase_ms};
  if (state_.phase == RunPhase::kDraining) {
    if (state_.open.empty() && stages_settled()) {
      for (StageRecord& stage : state_.stages) stage.final_merge_done = false;
      enter(RunPhase::kMerging, now_ + patience);
    } else if (late) {
      cancel_restage("the microbatches in flight were not complete within timeouts.lease_ms");
    }
    return;
  }
  if (state_.phase == RunPhase::kMerging) {
    const bool merged = std::all_of(state_.stages.begin(), state_.stages.end(),
                                    [](const StageRecord& stage) { return stage.final_merge_done; });
    if (merged && stages_settled()) {
      enter(RunPhase::kRestaging, now_ + patience);
    } else if (late) {
      cancel_restage("the merges were not over in time");
    }
    return;
  }
  if (state_.restage->writing) return;
  const bool published = std::all_of(state_.stages.begin(), state_.stages.end(),
                                     [](const StageRecord& stage) { return stage.state_published; });
  if (published) {
    state_.restage->writing = true;
    effects_.restage = ChangeStages{state_.restage->id, state_.restage->stage_layers};
  } else if (late) {
    cancel_restage("no replica could publish the state of every stage in time");
  }
}

void Orchestrator::cancel_restage(const std::string& reason) {
  say(fmt::format("the stages stay as they are: {}", reason), true);
  state_.restage.reset();
  for (StageRecord& stage : state_.stages) {
    stage.final_merge_done = false;
    if (stage.merge) stage.merge->final = false;
  }
  enter(state_.after_checkpoint, 0);
}

void Orchestrator::on(const StagesChanged& event) {
  if (!state_.restage || !state_.restage->writing || event.id != state_.restage->id) return;
  if (!event.ok || event.stage_values.size() != state_.stages.size() || event.states.size() != state_.stages.size()) {
    cancel_restage(event.why);
    return;
  }
  state_.spec.pipeline.stage_layers = state_.restage->stage_layers;
  state_.spec_version++;
  forget_audits();
  watch_.forget();
  state_.restage.reset();
  // Local states from a checkpoint are of the old layers.
  state_.resumable.clear();
  for (MinerRecord& miner : state_.miners) miner.resumed.reset();
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    StageRecord& stage = state_.stages[s];
    stage.values = event.stage_values[s];
    stage.epoch++;
    stage.state = event.states[s];
    stage.state_published = true;
    stage.published_epoch = stage.epoch;
    stage.published_state = stage.state;
    stage.past.clear();
    stage.disputants.clear();
    stage.remaking = stage.settled = false;
    stage.final_merge_done = false;
    stage.cooled_at = stage.epoch + 1;
  }
  for (MinerRecord& miner : state_.miners) {
    if (!miner.placed) continue;
    miner.ready = false;
    miner.fresh.clear();
    miner.upload.reset();
    miner.own_times = {};
    miner.microbatch_us = 0;
    if (!miner.assigned_stage) miner.assigned_stage = miner.pending_stage.value_or(miner.stage);
    miner.pending_stage.reset();
    miner.why = "joins again: the layers of its stage changed";
  }
  refresh_needs();
  set_neighbourhoods(1);
  say(fmt::format("the stages have {} layers from now on", fmt::join(state_.spec.pipeline.stage_layers, ", ")));
  enter(state_.after_checkpoint, 0);
}

}  // namespace tessera::core
