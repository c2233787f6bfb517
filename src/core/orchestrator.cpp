// Phases and checkpoints. Miners' coming and going is in orchestrator_miners.cpp, leases are in orchestrator_leases.cpp,
// merges in orchestrator_merge.cpp, answers to miners in orchestrator_answers.cpp.
#include "tessera/core/orchestrator.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "tessera/core/stage_layout.h"

namespace tessera::core {
namespace {

// A stop or a periodic checkpoint waits this long for microbatches in flight; what is open then is issued again later.
constexpr TimeMs kDrainMs = 3000;

}  // namespace

Effects Orchestrator::step(TimeMs now, const Event& event) {
  TESSERA_CHECK(now >= now_);
  TESSERA_CHECK(state_.created || std::holds_alternative<RunCreated>(event));
  now_ = now;
  effects_ = {};
  boundaries_.clear();
  members_changed_ = false;
  std::visit([&](const auto& e) { on(e); }, event);
  RunPhase before = state_.phase;
  do {
    before = state_.phase;
    consider_merges();
    advance_phase();
    consider_moves();
  } while (before != state_.phase);
  publish_if_due();
  return std::move(effects_);
}

void Orchestrator::say(std::string text, bool warning) {
  effects_.decisions.push_back({std::move(text), warning});
}

void Orchestrator::on(const RunCreated& event) {
  TESSERA_CHECK(!state_.created);
  TESSERA_CHECK(decode(event.run_spec, &state_.spec) && decode(event.data_plan, &state_.data));
  TESSERA_CHECK(event.stage_values.size() == state_.spec.pipeline.stages);
  state_.created = true;
  state_.run_id = event.run_id;
  state_.secret = event.secret;
  state_.stages.resize(state_.spec.pipeline.stages);
  for (StageIndex s = 0; s < state_.spec.pipeline.stages; ++s) state_.stages[s].values = event.stage_values[s];
  state_.checkpoint_at = state_.spec.checkpoint.every_microbatches;
  state_.file_spec = event.run_spec;
  refresh_needs();
  index_.rebuild(state_);
}

void Orchestrator::on(const RunResumed& event) {
  RunSpec spec;
  DataPlan data;
  TESSERA_CHECK(decode(event.run_spec, &spec) && decode(event.data_plan, &data));
  TESSERA_CHECK(event.stages.size() == state_.stages.size());
  state_.spec = spec;
  state_.data = data;
  state_.resumes++;
  state_.open.clear();
  state_.reissue.clear();
  state_.unpublished.clear();  // their numbers will be leased again
  for (MinerRecord& miner : state_.miners) {
    miner.live = miner.ready = false;
    miner.lost_at = now_;
    miner.pending_stage.reset();
    miner.assigned_stage.reset();
    // One that waits for a stage has no weights: its process may go on waiting.
    if (miner.placed && miner.registration.incarnation != 0) miner.retired_incarnation = miner.registration.incarnation;
    miner.registration.incarnation = 0;
    miner.resumed.reset();
    miner.fresh.clear();
    miner.in_flight = 0;
    miner.why = "the run was resumed";
  }
  for (StageIndex s = 0; s < event.stages.size(); ++s) {
    StageRecord stage;
    stage.values = stage_value_count(spec, s);
    stage.epoch = event.stages[s].epoch;
    stage.state = event.stages[s].state;
    stage.state_published = !stage.state.is_zero();
    stage.published_epoch = stage.epoch;
    stage.published_state = stage.state;
    stage.merges = event.stages[s].merges;
    stage.peers_changed = state_.stages[s].peers_changed;
    state_.stages[s] = stage;
  }
  state_.resumable.clear();
  for (const ResumedMiner& miner : event.miners) state_.resumable[miner.node] = miner;
  for (const OpenAtCheckpoint& open : event.open) {
    state_.open[open.microbatch].counted_stages = open.counted_stages;
    state_.open[open.microbatch].attempt = open.attempt;
    state_.reissue.insert(open.microbatch);
  }
  state_.next_microbatch = event.next_microbatch;
  state_.done = event.done;
  set_neighbourhoods(1);
  const uint64_t every = spec.checkpoint.every_microbatches;
  state_.checkpoint_at = every == 0 ? 0 : (event.done / every + 1) * every;
  state_.checkpoint_writing = false;
  state_.spec_version++;
  state_.file_spec = event.run_spec;
  state_.restage.reset();
  forget_audits();
  watch_.forget();
  refresh_needs();
  enter(RunPhase::kWaiting, 0);
  say(fmt::format("resumed at microbatch {} ({} done, {} to issue again)", event.next_microbatch, event.done,
                  event.open.size()));
}

void Orchestrator::enter(RunPhase phase, TimeMs deadline) {
  if (state_.phase != phase) say(fmt::format("run is {}", name_of(phase)));
  state_.phase = phase;
  state_.phase_deadline = deadline;
  members_changed_ = true;  // joiners may wait for this
  if (phase != RunPhase::kFinished) return;
  for (const auto& [id, microbatch] : state_.open) {
    state_.lost += state_.stages.size() - static_cast<size_t>(std::popcount(microbatch.counted_stages));
  }
}

// No merge is under way, and every live miner is at its stage's epoch.
bool Orchestrator::stages_settled() const {
  for (const StageRecord& stage : state_.stages) {
    if (stage.merge) return false;
  }
  return std::all_of(index_.stages().begin(), index_.stages().end(),
                     [](const StageSummary& stage) { return stage.behind == 0; });
}

void Orchestrator::advance_phase() {
  const bool late = state_.phase_deadline > 0 && now_ >= state_.phase_deadline;
  if (state_.restage) return advance_restage(late);
  switch (state_.phase) {
    case RunPhase::kWaiting: {
      for (StageIndex s = 0; s < state_.stages.size(); ++s) {
        if (ready_count(s) < state_.spec.pipeline.miners_per_stage) return;
      }
      enter(RunPhase::kRunning, 0);
      break;
    }
    case RunPhase::kRunning:
      if (state_.done >= state_.spec.total_microbatches()) {
        enter(RunPhase::kMerging, now_ + 3 * state_.spec.timeouts.merge_phase_ms);
      } else if (state_.checkpoint_at > 0 && state_.done >= state_.checkpoint_at) {
        state_.after_checkpoint = RunPhase::kRunning;
        enter(RunPhase::kDraining, now_ + state_.spec.timeouts.lease_ms);
      }
      break;
    case RunPhase::kDraining: {
      const bool drained = index_.deadlines().empty();
      if ((drained && state_.reissue.empty() && stages_settled()) || late) begin_checkpoint(state_.after_checkpoint);
      break;
    }
    case RunPhase::kMerging: {
      const bool merged = std::all_of(state_.stages.begin(), state_.stages.end(),
                                      [](const StageRecord& stage) { return stage.final_merge_done; });
      if ((merged && stages_settled()) || late) begin_checkpoint(RunPhase::kFinished);
      break;
    }
    case RunPhase::kCheckpointing:
      try_write_checkpoint();
      break;
    case RunPhase::kPaused:
    case RunPhase::kStopped:
    case RunPhase::kFinished:
    case RunPhase::kRestaging:
      break;
  }
}

void Orchestrator::begin_checkpoint(RunPhase after) {
  state_.after_checkpoint = after;
  state_.checkpoint_id++;
  state_.checkpoint_writing = false;
  for (MinerRecord& miner : state_.miners) {
    miner.checkpoint.reset();
    index_.update(state_, miner.index);
  }
  // No stage changes its epoch between its miners' commitments: what is still merging then merges again later.
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    if (state_.stages[s].merge) abort_merge(s, "a checkpoint can wait for it no longer");
  }
  enter(RunPhase::kCheckpointing, now_ + state_.spec.timeouts.merge_phase_ms);
  try_write_checkpoint();
}

void Orchestrator::try_write_checkpoint() {
  if (state_.checkpoint_writing) return;
  const bool late = now_ >= state_.phase_deadline;
  const bool published = std::all_of(state_.stages.begin(), state_.stages.end(),
                                     [](const StageRecord& stage) { return stage.state_published; });
  const bool everyone = std::all_of(index_.stages().begin(), index_.stages().end(),
                                    [](const StageSummary& stage) { return stage.uncommitted == 0; });
  if (published && (everyone || late)) {
    state_.checkpoint_writing = true;
    effects_.checkpoint = WriteCheckpoint{state_.checkpoint_id};
  } else if (late) {
    on(CheckpointWritten{state_.checkpoint_id, false, "no live miner could give the state of every stage in time"});
  }
}

void Orchestrator::on(const CheckpointCommitted& event) {
  if (!state_.miners.has(event.miner) || event.commit.id != state_.checkpoint_id ||
      state_.phase != RunPhase::kCheckpointing) {
    return;
  }
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.placed || !miner.ready || miner.epoch != state_.stages[miner.stage].epoch) return;
  miner.checkpoint = event.commit;
  miner.checkpoint_done = event.commit.id;
  index_.update(state_, event.miner);
}

void Orchestrator::on(const CheckpointWritten& event) {
  if (state_.phase != RunPhase::kCheckpointing || event.id != state_.checkpoint_id) return;
  state_.checkpoint_writing = false;
  if (event.ok) {
    state_.last_checkpoint = event.where;
    say(fmt::format("checkpoint {} written to {}", event.id, event.where));
  } else {
    say(fmt::format("checkpoint {} failed: {}; the one before it stays", event.id, event.where), true);
  }
  const uint64_t every = state_.spec.checkpoint.every_microbatches;
  if (every > 0) state_.checkpoint_at = (state_.done / every + 1) * every;
  enter(state_.after_checkpoint, 0);
}

void Orchestrator::on(const Ticked&) {
  expire_leases();
  std::vector<AuditNote> notes;
  audits().expire(now_, &notes);
  say(notes);
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    if (publisher_is_late(s, now_)) {
      state_.stages[s].publisher_turn++;
      state_.stages[s].publisher_asked_at = now_;
    }
    StageRecord& stage = state_.stages[s];
    if (stage.merge_paused_until > 0 && now_ >= stage.merge_paused_until) stage.merge_paused_until = 0;
    auto& merge = stage.merge;
    if (!merge || now_ < merge->deadline) continue;
    if (merge->phase == MergePhase::kSnapshot) {
      freeze(s);
    } else if (!merge->uploads_are_whole()) {
      leave_out_unfinished(s, "it did not come in time");
    } else {
      settle_shards(s);
    }
  }
}

void Orchestrator::on(const Commanded& event) {
  if (event.command == Command::kStop && state_.restage) cancel_restage("the run is stopped");
  const bool active = state_.phase == RunPhase::kRunning || state_.phase == RunPhase::kPaused ||
                      state_.phase == RunPhase::kWaiting;
  // Phases that end by themselves; the order is for what comes after.
  const bool checkpoints = state_.phase == RunPhase::kDraining || state_.phase == RunPhase::kCheckpointing ||
                           (state_.phase == RunPhase::kMerging && state_.restage);
  switch (event.command) {
    case Command::kPause:
      if (state_.phase == RunPhase::kRunning) enter(RunPhase::kPaused, 0);
      if (checkpoints && state_.after_checkpoint == RunPhase::kRunning) state_.after_checkpoint = RunPhase::kPaused;
      break;
    case Command::kResume:
      if (state_.phase == RunPhase::kPaused) enter(RunPhase::kRunning, 0);
      if (checkpoints && state_.after_checkpoint == RunPhase::kPaused) state_.after_checkpoint = RunPhase::kRunning;
      if (state_.phase == RunPhase::kStopped) enter(RunPhase::kWaiting, 0);
      break;
    case Command::kStop:
      if (state_.phase == RunPhase::kWaiting) {
        enter(RunPhase::kStopped, 0);  // nothing was done since the run, or its checkpoint, began
      } else if (active || state_.phase == RunPhase::kDraining) {
        state_.after_checkpoint = RunPhase::kStopped;
        enter(RunPhase::kDraining, now_ + kDrainMs);
      } else if (state_.phase == RunPhase::kCheckpointing && state_.after_checkpoint != RunPhase::kFinished) {
        state_.after_checkpoint = RunPhase::kStopped;
      }
      break;
    case Command::kCheckpoint:
      if (active) {
        state_.after_checkpoint = state_.phase;
        enter(RunPhase::kDraining, now_ + state_.spec.timeouts.lease_ms);
      }
      break;
  }
}

// The miner that was asked to put the stage's state into the blob store has not, in the time of a merge's phase.
bool Orchestrator::publisher_is_late(StageIndex s, TimeMs now) const {
  const StageRecord& stage = state_.stages[s];
  return !stage.state_published && !stage.state.is_zero() && index_.stage(s).current.size() > 1 &&
         now - stage.publisher_asked_at >= state_.spec.timeouts.merge_phase_ms;
}

bool Orchestrator::due(TimeMs now) const {
  if (!state_.created || (state_.restage && state_.restage->writing)) return false;
  if (state_.phase_deadline > 0 && now >= state_.phase_deadline && !state_.checkpoint_writing) return true;
  if (!index_.deadlines().empty() && now >= index_.deadlines().begin()->first) return true;
  if (const TimeMs audit = audits().next_deadline(); audit > 0 && now >= audit) return true;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    if (publisher_is_late(s, now)) return true;
    const TimeMs paused_until = state_.stages[s].merge_paused_until;
    if (paused_until > 0 && now >= paused_until) return true;
    const auto& merge = state_.stages[s].merge;
    if (!merge || now < merge->deadline) continue;
    if (merge->phase == MergePhase::kSnapshot || index_.stage(s).unsettled > 0) return true;
  }
  return false;
}

}  // namespace tessera::core
