// Phases of a run: finishing, checkpoints, pause, stop, resume.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/merge_rounds.h"
#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

using core::Command;
using core::Commanded;
using core::RunPhase;

// Everything that is left to do is done; returns the number of rounds it took.
int finish(ScriptedSwarm& swarm) {
  int rounds = 0;
  for (; rounds < 500 && swarm.world.state().phase != RunPhase::kFinished; ++rounds) {
    for (uint32_t replica = 0; replica < swarm.world.state().spec.pipeline.miners_per_stage;
         ++replica) {
      swarm.at(0, replica).sync();
      while (!swarm.at(0, replica).leases.empty()) swarm.train_one(replica);
    }
    swarm.sync_all();
    swarm.world.pass(10);
    while (!swarm.world.recomputations.empty()) finish_recomputation(swarm.world);  // a lone participant's
    if (!swarm.world.checkpoints.empty()) {
      swarm.world.step(core::CheckpointWritten{swarm.world.checkpoints.front(), true, "folder"});
      swarm.world.checkpoints.pop_front();
    }
  }
  return rounds;
}

TEST(Run, FinishesWithALastMergeAndACheckpoint) {
  ScriptedSwarm swarm(small_spec(3, 2));
  swarm.start();
  finish(swarm);
  const core::OrchestratorState& state = swarm.world.state();
  ASSERT_EQ(state.phase, RunPhase::kFinished);
  EXPECT_EQ(state.done, state.spec.total_microbatches());
  EXPECT_EQ(state.done, 32u);
  EXPECT_EQ(state.double_counted, 0u);
  EXPECT_EQ(state.last_checkpoint, "folder");
  for (const core::StageRecord& stage : state.stages) {
    EXPECT_TRUE(stage.final_merge_done);
    EXPECT_GE(stage.merges, 2u);
    EXPECT_TRUE(stage.state_published);
  }
  for (const core::MinerRecord& miner : state.miners) {
    EXPECT_EQ(miner.fresh_total(), 0u);
    EXPECT_EQ(miner.epoch, state.stages[miner.stage].epoch);
  }
  EXPECT_TRUE(swarm.at(2, 1).sync().leave);
  ScriptedMiner late(swarm.world, 77);
  EXPECT_EQ(late.join().refusal, core::RegisterRefusal::kRunFinished);
}

TEST(Run, FinishesWithoutMerges) {
  core::RunSpec spec = small_spec(2, 1);
  spec.merge.enabled = false;
  ScriptedSwarm swarm(spec);
  swarm.start();
  finish(swarm);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kFinished);
  EXPECT_EQ(swarm.world.stage(0).epoch, 0u);
}

TEST(Run, TheLastMergeWaitsForStragglersButNotForever) {
  ScriptedSwarm swarm(small_spec(1, 2));
  swarm.start();
  swarm.train(4);
  swarm.at(0, 1).habits.applies = false;
  for (int i = 0; i < 300 && swarm.world.state().phase != RunPhase::kMerging; ++i) {
    for (uint32_t replica : {0, 1}) {
      swarm.at(0, replica).sync();
      while (!swarm.at(0, replica).leases.empty()) swarm.train_one(replica);
    }
  }
  swarm.sync_all();
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kMerging);
  EXPECT_FALSE(swarm.world.stage(0).final_merge_done);
  swarm.world.pass(1500);  // three merge phases
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
}

TEST(Run, PausesAndGoesOn) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.world.step(Commanded{Command::kPause});
  swarm.at(0, 0).leases.clear();
  EXPECT_EQ(swarm.at(0, 0).sync().reason, "the run is paused");
  swarm.world.step(Commanded{Command::kPause});
  swarm.world.step(Commanded{Command::kResume});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  finish(swarm);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kFinished);
}

TEST(Checkpoint, IsTakenEverySoManyMicrobatches) {
  core::RunSpec spec = small_spec(2, 2);
  spec.checkpoint.every_microbatches = 10;
  ScriptedSwarm swarm(spec);
  swarm.start();
  finish(swarm);
  EXPECT_EQ(swarm.world.state().checkpoint_id,
            4u);  // at 10, 20, 30 or a little later, and at the end
}

TEST(Checkpoint, DrainsFirstAndNamesWhatIsOpenWhenThatTakesTooLong) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.at(0, 0).sync();
  ASSERT_EQ(swarm.at(0, 0).leases.size(), 2u);
  swarm.world.step(Commanded{Command::kCheckpoint});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kDraining);
  swarm.train_one(0);
  swarm.sync_all();
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kDraining);
  EXPECT_EQ(swarm.world.state().leased, 2u);  // nothing new is leased
  swarm.train_one(0);
  swarm.sync_all();
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  swarm.sync_all();
  swarm.sync_all();
  ASSERT_EQ(swarm.world.checkpoints.size(), 1u);
  swarm.world.step(core::CheckpointWritten{7, true, "not this one"});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  swarm.world.step(core::CheckpointWritten{1, false, "disk full"});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_EQ(swarm.world.state().last_checkpoint, "");
  EXPECT_TRUE(swarm.world.said("checkpoint 1 failed: disk full"));
}

TEST(Checkpoint, WaitsForAMinerOnlySoLong) {
  ScriptedSwarm swarm(small_spec(1, 2));
  swarm.start();
  swarm.sync_all();
  for (const auto& miner : swarm.miners) miner->leases.clear();
  swarm.at(0, 1).habits.checkpoints = false;
  swarm.world.step(Commanded{Command::kCheckpoint});
  swarm.world.pass(1000);  // the leases expire, and with them the draining ends
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_TRUE(swarm.world.checkpoints.empty());
  swarm.world.pass(500);
  EXPECT_EQ(swarm.world.checkpoints.size(), 1u);
  EXPECT_TRUE(swarm.at(0, 0).record().checkpoint);
  EXPECT_FALSE(swarm.at(0, 1).record().checkpoint);
}

TEST(Checkpoint, PauseAndResumeMeanwhileHoldAfterIt) {
  ScriptedSwarm swarm(small_spec(1, 1));
  swarm.start();
  swarm.at(0, 0).leases.clear();
  const auto write = [&] {
    swarm.world.pass(1000);
    ASSERT_TRUE(swarm.sync_until([&] { return !swarm.world.checkpoints.empty(); }));
    swarm.world.step(core::CheckpointWritten{swarm.world.checkpoints.front(), true, "folder"});
    swarm.world.checkpoints.pop_front();
  };
  swarm.world.step(Commanded{Command::kCheckpoint});
  swarm.world.step(Commanded{Command::kPause});
  write();
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kPaused);
  swarm.world.step(Commanded{Command::kCheckpoint});
  swarm.world.step(Commanded{Command::kResume});
  write();
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
}

TEST(Checkpoint, FailsWhenNoReplicaCouldPublish) {
  ScriptedSwarm swarm(small_spec(1, 1));
  swarm.at(0, 0).habits.publishes = false;
  swarm.start();
  swarm.at(0, 0).leases.clear();
  swarm.world.step(Commanded{Command::kCheckpoint});
  swarm.world.pass(1000);
  swarm.sync_all();
  swarm.world.pass(500);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_TRUE(swarm.world.checkpoints.empty());
  EXPECT_TRUE(swarm.world.said("no live miner could give the state of every stage in time"));
}

// A local state belongs to the base it was trained from: both must be of one epoch.
TEST(Checkpoint, AMergeInTheWayIsAbortedAndAStragglerCommitsOnlyWhenItCaughtUp) {
  core::RunSpec spec = small_spec(1, 3);
  spec.training.steps = 1000;
  spec.merge.quorum = 0.6;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 2).habits.applies = false;
  for (int i = 0; i < 4; ++i) {
    swarm.train_one(0);
    swarm.train_one(1);
  }
  for (int i = 0; i < 4; ++i) {
    swarm.at(0, 0).sync();
    swarm.at(0, 1).sync();
  }
  ASSERT_EQ(swarm.world.stage(0).epoch, 1u);
  for (const auto& miner : swarm.miners) miner->habits.uploads = false;
  for (int i = 0; i < 4; ++i) {
    swarm.train_one(0);
    swarm.train_one(1);
  }
  swarm.at(0, 0).sync();
  swarm.at(0, 1).sync();
  ASSERT_TRUE(swarm.world.stage(0).merge);
  swarm.world.step(Commanded{Command::kStop});
  swarm.world.pass(3000);
  swarm.world.pass(0);
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  EXPECT_FALSE(swarm.world.stage(0).merge);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 4u);
  EXPECT_EQ(swarm.at(0, 2).sync().checkpoint, 0u);
  swarm.at(0, 2).habits.applies = true;
  swarm.at(0, 2).sync();
  EXPECT_EQ(swarm.at(0, 2).sync().checkpoint, 1u);
  for (int i = 0; i < 3; ++i) swarm.sync_all();
  EXPECT_EQ(swarm.world.checkpoints.size(), 1u);
}

TEST(Stop, DrainsWritesACheckpointAndTellsEveryoneToLeave) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.train(2);
  swarm.world.step(Commanded{Command::kStop});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kDraining);
  swarm.at(0, 0).sync();
  while (!swarm.at(0, 0).leases.empty()) swarm.train_one(0);
  for (int i = 0; i < 4; ++i) swarm.sync_all();
  ASSERT_EQ(swarm.world.checkpoints.size(), 1u);
  swarm.world.step(core::CheckpointWritten{1, true, "folder"});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kStopped);
  EXPECT_TRUE(swarm.at(1, 0).sync().leave);
  swarm.world.step(Commanded{Command::kResume});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);  // everyone is still there
}

TEST(Stop, NeedsNoCheckpointBeforeAnythingWasDone) {
  OrchestratorWorld world(small_spec(2, 1));
  world.step(Commanded{Command::kStop});
  EXPECT_EQ(world.state().phase, RunPhase::kStopped);
}

TEST(Stop, DuringAPeriodicCheckpointStopsAfterIt) {
  ScriptedSwarm swarm(small_spec(1, 1));
  swarm.start();
  swarm.at(0, 0).leases.clear();
  swarm.world.step(Commanded{Command::kCheckpoint});
  swarm.world.pass(1000);
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  swarm.world.step(Commanded{Command::kStop});
  for (int i = 0; i < 3; ++i) swarm.sync_all();
  swarm.world.step(core::CheckpointWritten{1, true, "folder"});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kStopped);
}

core::RunResumed resumed_event(const core::RunSpec& spec) {
  core::RunResumed resumed;
  resumed.run_spec = encode(spec);
  resumed.data_plan = encode(small_data());
  resumed.next_microbatch = 10;
  resumed.done = 8;
  resumed.open = {{3, 2, 1}, {9, 0, 0}};
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s)
    resumed.stages.push_back({5, digest_of("state"), 4});
  resumed.miners.push_back({node_of(101), 1, digest_of("local"), 17, 7, 1});
  return resumed;
}

TEST(Resume, GoesOnFromTheCheckpointsCounters) {
  core::RunSpec spec = small_spec(2, 1);
  spec.training.steps = 40;
  ScriptedSwarm swarm(spec);
  swarm.world.step(resumed_event(spec));
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kWaiting);
  ScriptedMiner& tail = swarm.at(1, 0);
  const core::Assignment assignment = *tail.sync().assignment;
  EXPECT_EQ(assignment.epoch, 5u);
  EXPECT_EQ(assignment.state, digest_of("state"));
  EXPECT_EQ(assignment.local_state, digest_of("local"));
  EXPECT_EQ(assignment.schedule_step, 17u);
  EXPECT_EQ(tail.record().fresh, (std::map<uint64_t, uint32_t>{{0, 6}, {1, 1}}));
  // Its next process may have the state too, as long as none has used it.
  tail.restart();
  EXPECT_EQ(tail.sync().assignment->local_state, digest_of("local"));
  tail.habits.uploads = false;
  tail.sync();
  EXPECT_TRUE(tail.record().ready);
  EXPECT_FALSE(tail.record().resumed);
  EXPECT_EQ(tail.record().fresh_total(), 7u);
  swarm.at(0, 0).sync();
  swarm.at(0, 0).sync();
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  // What was stepped before the checkpoint is in its masters: a merge may begin with it.
  ASSERT_TRUE(swarm.world.stage(1).merge);
  tail.habits.uploads = true;
  tail.sync();
  tail.sync();
  EXPECT_EQ(swarm.world.stage(1).merge->counts, (std::vector<uint32_t>{6}));
  swarm.at(0, 0).sync();
  ASSERT_EQ(swarm.at(0, 0).leases.size(), 2u);
  EXPECT_EQ(swarm.at(0, 0).leases[0].microbatch, 3u);
  EXPECT_EQ(swarm.at(0, 0).leases[0].attempt, 3u);
  EXPECT_EQ(swarm.at(0, 0).leases[0].counted_stages, 1u);
  EXPECT_EQ(swarm.at(0, 0).leases[1].microbatch, 9u);
  EXPECT_EQ(swarm.at(0, 0).leases[1].attempt, 1u);
  swarm.at(0, 0).leases.clear();
  swarm.world.pass(1000);
  swarm.world.step(Commanded{Command::kPause});
  EXPECT_EQ(swarm.world.state().reissue.size(), 2u);
}

// Processes of before the resume have weights, receipts and step counts of after the checkpoint.
TEST(Resume, ProcessesOfBeforeMustBeStartedAgain) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.train(3);
  swarm.world.step(resumed_event(swarm.world.state().spec));
  EXPECT_EQ(swarm.world.core().find(swarm.at(0, 0).node(), swarm.at(0, 0).incarnation()), nullptr);
  const core::RegisterAnswer refused = swarm.at(0, 0).join();
  EXPECT_EQ(refused.refusal, core::RegisterRefusal::kRunFinished);
  EXPECT_THAT(refused.message, testing::HasSubstr("start the miner again"));
  for (const auto& miner : swarm.miners) miner->restart();
  swarm.start();
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  finish(swarm);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kFinished);
  EXPECT_EQ(swarm.world.state().done, swarm.world.state().spec.total_microbatches());
}

TEST(Resume, StoppedWhileItWaitsKeepsTheCheckpointItCameFrom) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.world.step(resumed_event(swarm.world.state().spec));
  swarm.at(0, 0).sync();
  swarm.world.step(Commanded{Command::kStop});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kStopped);
  EXPECT_TRUE(swarm.world.checkpoints.empty());
}

TEST(Journal, BytesThatAreNoEventAreRefused) {
  EXPECT_FALSE(core::decode_event("ticked", "x"));
  EXPECT_FALSE(core::decode_event("no such event", ""));
  EXPECT_TRUE(core::decode_event("ticked", ""));
  const core::Event event = core::MinerLost{3, "silent"};
  const std::string body = core::event_body(event);
  for (size_t length = 0; length < body.size(); ++length) {
    EXPECT_FALSE(core::decode_event("miner_lost", body.substr(0, length)));
  }
  EXPECT_EQ(core::event_json(event), "{\"miner\":3,\"reason\":\"silent\"}");
}

}  // namespace
}  // namespace tessera::test
