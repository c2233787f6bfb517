// Every order of events in small worlds: three miners, two stages, whatever may happen next, to a bounded depth. After each
// step the state's invariants and those of the step itself must hold; states that were seen before are not followed again.
#include <gtest/gtest.h>

#include <deque>
#include <set>

#include "support/orchestrator_world.h"
#include "support/small_run.h"
#include "tessera/base/crypto.h"
#include "tessera/core/invariants.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::Command;
using core::Event;
using core::OrchestratorState;

constexpr size_t kMostStates = 6000;

core::RunSpec explored_spec() {
  core::RunSpec spec = small_spec(2, 1);
  spec.model.layers = 3;
  spec.pipeline.stage_layers = {1, 2};
  spec.merge.min_microbatches = 1;
  spec.training.microbatches_per_step = 1;
  spec.training.steps = 3;
  return spec;
}

core::Orchestrator new_run() {
  const core::RunSpec spec = explored_spec();
  core::RunCreated created;
  created.run_id = "0123456789abcdef";
  created.run_spec = encode(spec);
  created.data_plan = encode(small_data());
  for (StageIndex s = 0; s < 2; ++s) created.stage_values.push_back(core::stage_value_count(spec, s));
  core::Orchestrator core;
  core.step(1, created);
  return core;
}

core::Registration process(uint64_t number, uint64_t incarnation) {
  core::Registration registration;
  registration.node = node_of(number);
  registration.incarnation = incarnation;
  registration.address = "host:1";
  registration.device = "cpu";
  return registration;
}

// It names the first miner of the other stage as its neighbour.
core::Receipt receipt(const OrchestratorState& state, const core::MinerRecord& miner, MicrobatchId microbatch) {
  core::Receipt receipt;
  receipt.sequence = miner.receipts_through + 1;
  receipt.incarnation = miner.registration.incarnation;
  receipt.miner = miner.index;
  receipt.stage = miner.stage;
  for (const core::MinerRecord& other : state.miners) {
    if (!other.placed || other.stage == miner.stage) continue;
    (miner.stage == 0 ? receipt.downstream : receipt.upstream) = other.index;
    break;
  }
  receipt.microbatch = microbatch;
  receipt.accumulated = true;
  receipt.local_step = miner.local_steps;
  receipt.forward_ms = miner.index == 2 ? 30 : 10;
  return receipt;
}

void add_merge_events(const OrchestratorState& state, const core::MinerRecord& miner, std::vector<Event>* events) {
  const core::StageRecord& stage = state.stages[miner.stage];
  if (!stage.merge) return;
  const core::Merge& merge = *stage.merge;
  if (merge.phase == core::MergePhase::kSnapshot) {
    core::UploadCommitted upload{miner.index, {merge.target, digest_of(miner.registration.node.view()), 5, 5}};
    events->push_back(upload);
    upload.commit.whole = true;
    events->push_back(upload);
    return;
  }
  if (const auto upload = merge.uploads.find(miner.index); upload != merge.uploads.end() && !upload->second.whole) {
    core::UploadCommitted whole{miner.index, upload->second};
    whole.commit.whole = true;
    events->push_back(whole);
  }
  for (uint32_t i = 0; i < merge.shards.size(); ++i) {
    core::ShardCommit commit{merge.target, merge.first_shard + i, digest_of("shard"), digest_of("copy")};
    commit.measures.assign(merge.participants.size(), {1.0, 0.5});
    events->push_back(core::ShardCommitted{miner.index, commit});
    if (merge.shards[i].recomputing) events->push_back(core::ShardRecomputed{miner.stage, commit, {}});
  }
}

void add_miner_events(const OrchestratorState& state, const core::MinerRecord& miner, std::vector<Event>* events) {
  const uint64_t incarnation = miner.registration.incarnation;
  if (incarnation < 3) {
    events->push_back(core::MinerRegistered{process(static_cast<uint64_t>(miner.registration.node.bytes[0]), incarnation + 1)});
  }
  if (!miner.live) {
    events->push_back(core::MinerReturned{miner.index});
    return;
  }
  events->push_back(core::MinerLost{miner.index, "silent"});
  if (!miner.placed) return;
  const core::StageRecord& stage = state.stages[miner.stage];
  const Digest held = stage.state.is_zero() ? digest_of("state") : stage.state;
  if (!miner.ready || miner.epoch < stage.epoch) {
    events->push_back(core::StateHeld{miner.index, {stage.epoch, held, 1, miner.local_steps}});
    return;
  }
  if (!stage.state_published) events->push_back(core::StatePublished{miner.index, stage.epoch, stage.state});
  if (miner.stage == 0) events->push_back(core::LeasesRequested{miner.index, miner.lease_request + 1, 1});
  if (!state.open.empty()) {
    events->push_back(core::ReceiptsArrived{miner.index, {receipt(state, miner, state.open.begin()->first)}});
  }
  add_merge_events(state, miner, events);
}

// All that can happen next, orders of operators included if they are not refused.
std::vector<Event> next_events(const core::Orchestrator& core) {
  const OrchestratorState& state = core.state();
  std::vector<Event> events;
  if (state.miners.size() < 3) events.push_back(core::MinerRegistered{process(state.miners.size() + 1, 1)});
  for (const core::MinerRecord& miner : state.miners) {
    add_miner_events(state, miner, &events);
    for (StageIndex s = 0; s < 2; ++s) {
      const auto order = core.assign_order(miner.index, s, false);
      if (order.ok() && *order) events.push_back(**order);
    }
    const auto drain = core.drain_order(miner.index);
    if (drain.ok() && *drain) events.push_back(**drain);
  }
  for (const Command command : {Command::kPause, Command::kResume, Command::kStop, Command::kCheckpoint}) {
    events.push_back(core::Commanded{command});
  }
  if (const auto stages = core.stages_order({2, 1}); stages.ok() && *stages) events.push_back(**stages);
  if (state.restage && state.restage->writing) {
    events.push_back(core::StagesChanged{state.restage->id, true, "", {300, 300}, {digest_of("a"), digest_of("b")}});
    events.push_back(core::StagesChanged{state.restage->id, false, "no room", {}, {}});
  }
  if (state.checkpoint_writing) events.push_back(core::CheckpointWritten{state.checkpoint_id, true, "folder"});
  events.push_back(core::Ticked{});
  return events;
}

// The run as it is when three miners hold their stages and published them.
core::Orchestrator running() {
  core::Orchestrator core = new_run();
  for (uint64_t number = 1; number <= 3; ++number) core.step(1, core::MinerRegistered{process(number, 1)});
  for (MinerIndex m = 0; m < 3; ++m) core.step(1, core::StateHeld{m, {0, digest_of("state"), 1, 0}});
  for (MinerIndex m = 0; m < 2; ++m) core.step(1, core::StatePublished{m, 0, digest_of("state")});
  return core;
}

struct Explored {
  uint64_t steps = 0;
  uint64_t moves = 0;
  uint64_t queued = 0;
  uint64_t merges = 0;
  uint64_t restaging = 0;
  size_t states = 0;
  std::set<core::RunPhase> phases;
};

void explore(core::Orchestrator start, Explored* explored) {
  struct World {
    core::Orchestrator core;
    TimeMs now = 1;
  };
  std::deque<World> frontier;
  frontier.push_back({std::move(start), 1});
  std::set<Digest> seen;
  while (!frontier.empty() && seen.size() < kMostStates) {
    const World world = std::move(frontier.front());
    frontier.pop_front();
    for (const Event& event : next_events(world.core)) {
      World next = world;
      // Deadlines pass only with a tick, so that their order with the other events is explored as well.
      if (std::holds_alternative<core::Ticked>(event)) next.now += 600;
      next.core.step(next.now, event);
      explored->steps++;
      const OrchestratorState& state = next.core.state();
      ASSERT_EQ(core::broken_invariant(state), "") << core::event_json(event);
      ASSERT_EQ(broken_transition(world.core.state(), event, state), "") << core::event_json(event);
      explored->phases.insert(state.phase);
      explored->moves += state.moves > world.core.state().moves;
      explored->queued += !state.waiting.empty();
      explored->merges += state.stages[0].merges + state.stages[1].merges > 0;
      explored->restaging += state.restage.has_value();
      if (seen.insert(digest_of(core::dump(state))).second) frontier.push_back(std::move(next));
    }
  }
  explored->states = seen.size();
}

TEST(SmallWorlds, EveryOrderOfEventsFromTheBeginning) {
  Explored explored;
  explore(new_run(), &explored);
  if (HasFatalFailure()) return;
  EXPECT_GT(explored.steps, 8000u);
  EXPECT_GT(explored.queued, 100u);
}

TEST(SmallWorlds, EveryOrderOfEventsOfARunningRun) {
  Explored explored;
  explore(running(), &explored);
  if (HasFatalFailure()) return;
  EXPECT_GT(explored.steps, 8000u);
  EXPECT_GT(explored.moves, 10u);
  EXPECT_GT(explored.restaging, 100u);
  EXPECT_GE(explored.phases.size(), 5u);
}

}  // namespace
}  // namespace tessera::test
