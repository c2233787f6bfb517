// Registration, phases and checkpoints. Leases are in orchestrator_leases.cpp, merges in orchestrator_merge.cpp, answers
// to miners in orchestrator_answers.cpp.
#include "tessera/core/orchestrator.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::core {
namespace {

// A stop or a periodic checkpoint waits this long for microbatches in flight; what is open then is issued again later.
constexpr TimeMs kDrainMs = 3000;

}  // namespace

uint32_t MinerRecord::fresh_total() const {
  uint32_t total = 0;
  for (const auto& [step, count] : fresh) total += count;
  return total;
}

Effects Orchestrator::step(TimeMs now, const Event& event) {
  TESSERA_CHECK(now >= now_);
  TESSERA_CHECK(state_.created || std::holds_alternative<RunCreated>(event));
  now_ = now;
  effects_ = {};
  std::visit([&](const auto& e) { on(e); }, event);
  RunPhase before = state_.phase;
  do {
    before = state_.phase;
    consider_merges();
    advance_phase();
  } while (before != state_.phase);
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
}

void Orchestrator::on(const RunResumed& event) {
  RunSpec spec;
  DataPlan data;
  TESSERA_CHECK(decode(event.run_spec, &spec) && decode(event.data_plan, &data));
  TESSERA_CHECK(event.stages.size() == state_.stages.size());
  state_.spec = spec;
  state_.data = data;
  state_.open.clear();
  state_.reissue.clear();
  for (MinerRecord& miner : state_.miners) {
    miner.live = miner.ready = false;
    miner.registration.incarnation = 0;
    miner.fresh.clear();
    miner.in_flight = 0;
    miner.why = "the run was resumed";
  }
  for (StageIndex s = 0; s < event.stages.size(); ++s) {
    StageRecord stage;
    stage.values = state_.stages[s].values;
    stage.epoch = event.stages[s].epoch;
    stage.state = event.stages[s].state;
    stage.state_published = !stage.state.is_zero();
    stage.merges = event.stages[s].merges;
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
  state_.peers_version++;
  const uint64_t every = spec.checkpoint.every_microbatches;
  state_.checkpoint_at = every == 0 ? 0 : (event.done / every + 1) * every;
  state_.checkpoint_writing = false;
  enter(RunPhase::kWaiting, 0);
  say(fmt::format("resumed at microbatch {} ({} done, {} to issue again)", event.next_microbatch, event.done,
                  event.open.size()));
}

StageIndex Orchestrator::choose_stage(const Registration& registration) const {
  if (const auto resumed = state_.resumable.find(registration.node); resumed != state_.resumable.end()) {
    return resumed->second.stage;
  }
  if (registration.wanted_stage && *registration.wanted_stage < state_.stages.size()) {
    return *registration.wanted_stage;
  }
  std::vector<uint32_t> live(state_.stages.size(), 0);
  for (const MinerRecord& miner : state_.miners) {
    if (miner.live && miner.registration.node != registration.node) live[miner.stage]++;
  }
  return static_cast<StageIndex>(std::min_element(live.begin(), live.end()) - live.begin());
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
      hurry(index);
      drop_from_merge(index);
    }
    const bool stayed = known != state_.by_node.end() && state_.resumable.count(registration.node) == 0;
    const StageIndex stage = stayed && ready_count(miner.stage) < state_.spec.pipeline.miners_per_stage
                                 ? miner.stage
                                 : choose_stage(registration);
    const uint64_t counted = miner.counted;
    MinerRecord fresh;
    fresh.index = index;
    fresh.stage = stage;
    fresh.counted = counted;
    fresh.in_flight = miner.in_flight;
    if (const auto resumed = state_.resumable.find(registration.node); resumed != state_.resumable.end()) {
      fresh.resumed = resumed->second;
      if (resumed->second.fresh > 0) fresh.fresh[0] = resumed->second.fresh;
      state_.resumable.erase(resumed);
    }
    miner = std::move(fresh);
  }
  miner.registration = registration;
  miner.live = true;
  miner.why = miner.ready ? "registered again" : "loading its stage";
  state_.peers_version++;
  say(fmt::format("miner {} ({}) at {} on {}: stage {}{}", index, registration.node.brief(), registration.address,
                  registration.device, miner.stage, same_process ? ", same process again" : ""));
}

void Orchestrator::on(const MinerLost& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (!miner.live) return;
  miner.live = false;
  miner.why = event.reason;
  state_.peers_version++;
  say(fmt::format("miner {} of stage {} lost: {}", event.miner, miner.stage, event.reason), true);
  hurry(event.miner);
  drop_from_merge(event.miner);
}

// The open microbatches of a miner that is gone may already be on their way through another one: they get a short while,
// then a new attempt.
void Orchestrator::hurry(MinerIndex miner) {
  const TimeMs soon = now_ + state_.spec.timeouts.peer_ms;
  for (auto& [id, microbatch] : state_.open) {
    if (!microbatch.leased) continue;
    const auto& pathway = microbatch.pathway;
    if (std::find(pathway.begin(), pathway.end(), miner) == pathway.end()) continue;
    microbatch.deadline = std::min(microbatch.deadline, soon);
  }
}

void Orchestrator::on(const MinerReturned& event) {
  if (event.miner >= state_.miners.size() || state_.miners[event.miner].live) return;
  MinerRecord& miner = state_.miners[event.miner];
  miner.live = true;
  miner.why = "answers again";
  state_.peers_version++;
  say(fmt::format("miner {} of stage {} answers again", event.miner, miner.stage));
}

void Orchestrator::on(const StateHeld& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  StageRecord& stage = state_.stages[miner.stage];
  if (event.applied.epoch > stage.epoch) return;
  // Only the newest epoch's name is kept; an older one is checked when the miner has caught up.
  if (event.applied.epoch == stage.epoch) {
    if (stage.state.is_zero()) {
      stage.state = event.applied.state;
    } else if (stage.state != event.applied.state) {
      stage.replica_mismatches++;
      miner.ready = false;
      miner.must_download = true;
      miner.why = fmt::format("its base at epoch {} differs from the stage's; it must load it again", stage.epoch);
      say(fmt::format("miner {} of stage {}: {}", miner.index, miner.stage, miner.why), true);
      return;
    }
  }
  miner.epoch = event.applied.epoch;
  if (!miner.ready) {
    miner.ready = true;
    miner.must_download = false;
    miner.why = "ready";
    state_.peers_version++;
    say(fmt::format("miner {} of stage {} is ready at epoch {}", miner.index, miner.stage, miner.epoch));
  }
}

void Orchestrator::on(const StatePublished& event) {
  if (event.miner >= state_.miners.size()) return;
  StageRecord& stage = state_.stages[state_.miners[event.miner].stage];
  if (event.epoch != stage.epoch || event.state != stage.state) return;
  stage.state_published = true;
}

bool Orchestrator::stage_has_ready(StageIndex stage) const { return ready_count(stage) > 0; }

uint32_t Orchestrator::ready_count(StageIndex stage) const {
  return static_cast<uint32_t>(std::count_if(state_.miners.begin(), state_.miners.end(), [&](const MinerRecord& m) {
    return m.live && m.ready && m.stage == stage;
  }));
}

void Orchestrator::enter(RunPhase phase, TimeMs deadline) {
  if (state_.phase != phase) say(fmt::format("run is {}", name_of(phase)));
  state_.phase = phase;
  state_.phase_deadline = deadline;
}

// No merge is under way, and every live miner is at its stage's epoch.
bool Orchestrator::stages_settled() const {
  for (const StageRecord& stage : state_.stages) {
    if (stage.merge) return false;
  }
  return std::all_of(state_.miners.begin(), state_.miners.end(), [&](const MinerRecord& m) {
    return !m.live || !m.ready || m.epoch == state_.stages[m.stage].epoch;
  });
}

void Orchestrator::advance_phase() {
  const bool late = state_.phase_deadline > 0 && now_ >= state_.phase_deadline;
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
      const bool drained = std::none_of(state_.open.begin(), state_.open.end(),
                                        [](const auto& entry) { return entry.second.leased; });
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
      break;
  }
}

void Orchestrator::begin_checkpoint(RunPhase after) {
  state_.after_checkpoint = after;
  state_.checkpoint_id++;
  state_.checkpoint_writing = false;
  for (MinerRecord& miner : state_.miners) miner.checkpoint.reset();
  enter(RunPhase::kCheckpointing, now_ + state_.spec.timeouts.merge_phase_ms);
  try_write_checkpoint();
}

void Orchestrator::try_write_checkpoint() {
  if (state_.checkpoint_writing) return;
  const bool late = now_ >= state_.phase_deadline;
  const bool published = std::all_of(state_.stages.begin(), state_.stages.end(),
                                     [](const StageRecord& stage) { return stage.state_published; });
  const bool everyone = std::all_of(state_.miners.begin(), state_.miners.end(), [](const MinerRecord& m) {
    return !m.live || !m.ready || m.checkpoint.has_value();
  });
  if (published && (everyone || late)) {
    state_.checkpoint_writing = true;
    effects_.checkpoint = WriteCheckpoint{state_.checkpoint_id};
  } else if (late) {
    on(CheckpointWritten{state_.checkpoint_id, false, "no live miner could give the state of every stage in time"});
  }
}

void Orchestrator::on(const CheckpointCommitted& event) {
  if (event.miner >= state_.miners.size() || event.commit.id != state_.checkpoint_id ||
      state_.phase != RunPhase::kCheckpointing) {
    return;
  }
  MinerRecord& miner = state_.miners[event.miner];
  miner.checkpoint = event.commit;
  miner.checkpoint_done = event.commit.id;
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
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    auto& merge = state_.stages[s].merge;
    if (!merge || now_ < merge->deadline) continue;
    if (merge->phase == MergePhase::kSnapshot) {
      freeze(s);
    } else {
      settle_shards(s);
    }
  }
}

void Orchestrator::on(const Commanded& event) {
  const bool active = state_.phase == RunPhase::kRunning || state_.phase == RunPhase::kPaused ||
                      state_.phase == RunPhase::kWaiting;
  switch (event.command) {
    case Command::kPause:
      if (state_.phase == RunPhase::kRunning) enter(RunPhase::kPaused, 0);
      break;
    case Command::kResume:
      if (state_.phase == RunPhase::kPaused) enter(RunPhase::kRunning, 0);
      if (state_.phase == RunPhase::kStopped) enter(RunPhase::kWaiting, 0);
      break;
    case Command::kStop:
      if (state_.phase == RunPhase::kWaiting && state_.done == 0) {
        enter(RunPhase::kStopped, 0);
      } else if (active || state_.phase == RunPhase::kDraining) {
        state_.after_checkpoint = RunPhase::kStopped;
        enter(RunPhase::kDraining, now_ + kDrainMs);
      } else if (state_.phase == RunPhase::kCheckpointing && state_.after_checkpoint == RunPhase::kRunning) {
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

bool Orchestrator::due(TimeMs now) const {
  if (!state_.created) return false;
  if (state_.phase_deadline > 0 && now >= state_.phase_deadline && !state_.checkpoint_writing) return true;
  for (const auto& [id, microbatch] : state_.open) {
    if (microbatch.leased && now >= microbatch.deadline) return true;
  }
  return std::any_of(state_.stages.begin(), state_.stages.end(), [&](const StageRecord& stage) {
    if (!stage.merge || now < stage.merge->deadline) return false;
    if (stage.merge->phase == MergePhase::kSnapshot) return true;
    return std::any_of(stage.merge->shards.begin(), stage.merge->shards.end(),
                       [](const MergeShard& shard) { return !shard.accepted && !shard.recomputing; });
  });
}

}  // namespace tessera::core
