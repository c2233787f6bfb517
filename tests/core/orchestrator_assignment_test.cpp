// Stages of miners: newcomers, the queue, moves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/operator_orders.h"

namespace tessera::test {
namespace {

using core::Command;
using core::Commanded;
using core::RunPhase;
using testing::HasSubstr;

// ---- newcomers ------------------------------------------------------------------------------------------------------

TEST(Newcomer, GoesToTheStageWithTheLeastMeasuredThroughput) {
  ScriptedSwarm swarm(admin_spec(2, 2));
  swarm.start();
  for (uint32_t replica : {0, 1}) {
    swarm.at(0, replica).microbatch_ms = 10;
    swarm.at(1, replica).microbatch_ms = 40;
  }
  swarm.train(2);
  for (uint64_t number : {901, 902}) {
    ScriptedMiner late(swarm.world, number);
    late.join();
    EXPECT_EQ(late.record().stage, 1u) << number;  // 4 x 25 < 2 x 100
  }
}

TEST(Newcomer, IsNeverGivenAStageThatDoesNotFit) {
  core::RunSpec spec = admin_spec(2, 1);
  spec.model.layers = 8;
  spec.pipeline.stage_layers = {1, 7};
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 0).microbatch_ms = 1;
  swarm.at(1, 0).microbatch_ms = 100;
  swarm.train(2);
  const uint64_t need_0 = swarm.world.stage(0).need_cpu_bytes;
  ASSERT_LT(need_0, swarm.world.stage(1).need_cpu_bytes);
  ScriptedMiner small(swarm.world, 901);
  small.registration().memory_bytes = need_0;
  small.join();
  EXPECT_EQ(small.record().stage, 0u);
  ScriptedMiner tiny(swarm.world, 902);
  tiny.registration().memory_bytes = need_0 - 1;
  const core::RegisterAnswer refused = tiny.join();
  EXPECT_EQ(refused.refusal, core::RegisterRefusal::kNotFitting);
  EXPECT_THAT(refused.message, HasSubstr("stage 0 needs"));
  EXPECT_THAT(refused.message, HasSubstr("pipeline.max_in_flight"));
  ScriptedMiner wanting(swarm.world, 903, 1);
  wanting.registration().memory_bytes = need_0;
  EXPECT_EQ(wanting.join().refusal, core::RegisterRefusal::kNotFitting);
  ScriptedMiner unknown(swarm.world, 904);
  unknown.join();
  EXPECT_EQ(unknown.record().stage, 1u);
  EXPECT_EQ(why(swarm.world.core().assign_order(small.index(), 1, true)).substr(0, 13), "stage 1 needs");
}

TEST(Queue, KeepsEverybodysPlaceThroughCrashesAndRestarts) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  swarm.world.step(Commanded{Command::kPause});
  std::vector<std::unique_ptr<ScriptedMiner>> late;
  for (uint64_t number : {901, 902, 903}) {
    late.push_back(std::make_unique<ScriptedMiner>(swarm.world, number));
    late.back()->sync();
  }
  EXPECT_THAT(late[2]->sync().reason, HasSubstr("place 3 of 3 in the queue"));
  EXPECT_THAT(late[2]->answer().reason, HasSubstr("the run is paused"));
  EXPECT_FALSE(late[2]->answer().assignment.has_value());
  swarm.world.restart();
  swarm.world.step(core::MinerLost{late[1]->index(), "silent"});
  late[1]->restart();  // another process of the same miner
  EXPECT_THAT(late[1]->sync().reason, HasSubstr("place 2 of 3"));
  swarm.world.step(core::MinerLost{late[0]->index(), "silent"});
  EXPECT_THAT(late[1]->sync().reason, HasSubstr("place 2 of 3"));
  // A miner that had a stage gets it back at once: it is no joiner.
  swarm.at(1, 0).restart();
  swarm.at(1, 0).join();
  EXPECT_TRUE(swarm.at(1, 0).record().placed);
  swarm.world.step(Commanded{Command::kResume});
  EXPECT_TRUE(late[1]->record().placed);
  EXPECT_TRUE(late[2]->record().placed);
  EXPECT_NE(late[1]->record().stage, late[2]->record().stage);
  EXPECT_FALSE(late[0]->record().placed);  // it is not there
  late[0]->sync();
  EXPECT_TRUE(late[0]->record().placed);
  EXPECT_TRUE(swarm.world.state().waiting.empty());
}

TEST(Queue, WhoWaitsForAStageCountsNoGradients) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  for (int i = 0; i < 3 && head.leases.empty(); ++i) head.sync();
  ASSERT_FALSE(head.leases.empty());
  const MicrobatchId microbatch = head.leases.front().microbatch;
  swarm.world.step(Commanded{Command::kPause});
  ScriptedMiner late(swarm.world, 900);
  late.join();
  ASSERT_FALSE(late.record().placed);
  late.receipt(microbatch);
  late.sync();
  EXPECT_EQ(late.record().counted, 0u);
  EXPECT_EQ(swarm.world.state().open.at(microbatch).counted_stages, 0u);
}

TEST(Queue, APlaceLapsesAfterTenMinutesOfSilence) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  swarm.world.step(Commanded{Command::kPause});
  ScriptedMiner gone(swarm.world, 901), second(swarm.world, 902), third(swarm.world, 903);
  gone.sync();
  second.sync();
  swarm.world.step(core::MinerLost{gone.index(), "silent"});
  swarm.world.pass(600001);
  third.sync();
  EXPECT_THAT(second.sync().reason, HasSubstr("place 1 of 2"));
  gone.restart();
  EXPECT_THAT(gone.sync().reason, HasSubstr("place 3 of 3"));
}

TEST(Queue, NobodyIsGivenToARunWhoseWorkIsDone) {
  core::RunSpec spec = small_spec(1, 1);
  spec.training.steps = 2;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 0).habits.uploads = false;
  swarm.train(4);
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kMerging);
  ScriptedMiner late(swarm.world, 901);
  EXPECT_THAT(late.sync().reason, HasSubstr("all microbatches of the run are done"));
}

// ---- moves ----------------------------------------------------------------------------------------------------------

// Two stages; stage 0 with three miners, stage 1 with one that takes as long as they do.
struct LopsidedSwarm {
  LopsidedSwarm() : world(spec()) {
    for (uint64_t number = 1; number <= 4; ++number) {
      miners.push_back(std::make_unique<ScriptedMiner>(world, number, number == 4 ? 1 : 0));
      miners.back()->join();
    }
    // They go where they are wanted and may be moved all the same: their next registration wants nothing.
    for (const auto& miner : miners) {
      miner->registration().wanted_stage.reset();
      miner->join();
      miner->microbatch_ms = 10;
    }
    for (int i = 0; i < 3; ++i) sync_all();
  }
  static core::RunSpec spec() {
    core::RunSpec spec = admin_spec(2, 1);
    spec.pipeline.max_in_flight = 8;
    spec.pipeline.rebalance_patience = 1;
    return spec;
  }
  void sync_all() {
    for (const auto& miner : miners) miner->sync();
  }
  // One microbatch through every head and the only tail.
  void train_one(size_t head) {
    miners[head]->sync();
    if (miners[head]->leases.empty()) return;
    const core::Lease lease = miners[head]->leases.front();
    miners[head]->leases.erase(miners[head]->leases.begin());
    miners[head]->receipt(lease.microbatch, lease.attempt);
    miners[head]->last_receipt().downstream = miners[3]->index();
    miners[3]->receipt(lease.microbatch, lease.attempt);
    miners[3]->last_receipt().upstream = miners[head]->index();
    sync_all();
  }
  OrchestratorWorld world;
  std::vector<std::unique_ptr<ScriptedMiner>> miners;
};

TEST(Rebalancing, MovesAMinerAtTheEpochBoundaryAndThenCoolsDown) {
  LopsidedSwarm swarm;
  for (int i = 0; i < 4; ++i) {
    for (size_t head : {0, 1, 2}) swarm.train_one(head);
    if (swarm.world.stage(0).epoch == 0) {
      EXPECT_EQ(swarm.world.state().moves, 0u);
    }
  }
  for (int i = 0; i < 5 && swarm.world.stage(0).epoch == 0; ++i) swarm.sync_all();
  ASSERT_EQ(swarm.world.stage(0).epoch, 1u);
  ASSERT_EQ(swarm.world.state().moves, 1u);
  EXPECT_TRUE(swarm.world.said("moves from stage 0 to stage 1: the run's throughput rises"));
  const auto moved = std::find_if(swarm.miners.begin(), swarm.miners.end(),
                                  [](const auto& miner) { return miner->record().assigned_stage.has_value(); });
  ASSERT_NE(moved, swarm.miners.end());
  (*moved)->sync();
  EXPECT_TRUE((*moved)->told_to_move);
  swarm.world.restart();
  (*moved)->sync();  // nothing is in flight
  EXPECT_FALSE((*moved)->record().live);
  (*moved)->restart();
  (*moved)->join();
  for (int i = 0; i < 3; ++i) (*moved)->sync();
  EXPECT_EQ((*moved)->record().stage, 1u);
  EXPECT_TRUE((*moved)->record().ready);
  EXPECT_FALSE((*moved)->record().assigned_stage.has_value());
  EXPECT_EQ(swarm.world.state().moves, 1u);
}

TEST(Rebalancing, WaitsUntilEnoughBoundariesInARowAgree) {
  for (const uint64_t patience : {1, 3, 6}) {
    LopsidedSwarm swarm;
    obey(swarm.world, swarm.world.core().spec_order("pipeline.rebalance_patience", std::to_string(patience)));
    for (int i = 0; i < 200 && swarm.world.state().moves == 0; ++i) {
      for (size_t head : {0, 1, 2}) swarm.train_one(head);
    }
    EXPECT_EQ(swarm.world.state().moves, 1u);
    // Moves are looked at when the giver is at its boundary: that may be one boundary of the other stage later.
    const uint64_t boundaries = swarm.world.stage(0).epoch + swarm.world.stage(1).epoch;
    EXPECT_GE(boundaries, patience);
    EXPECT_LE(boundaries, patience + 2);
  }
}

TEST(Rebalancing, IsOffWithoutAGain) {
  LopsidedSwarm swarm;
  obey(swarm.world, swarm.world.core().spec_order("pipeline.rebalance_gain", "0"));
  for (int i = 0; i < 5; ++i) {
    for (size_t head : {0, 1, 2}) swarm.train_one(head);
  }
  for (int i = 0; i < 5; ++i) swarm.sync_all();
  ASSERT_GT(swarm.world.stage(0).epoch, 0u);
  EXPECT_EQ(swarm.world.state().moves, 0u);
}

TEST(Rebalancing, FillsAnEmptiedStageAtOnce) {
  LopsidedSwarm swarm;
  ASSERT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  swarm.world.step(core::MinerLost{swarm.miners[3]->index(), "silent"});
  EXPECT_EQ(swarm.world.state().moves, 1u);
  EXPECT_TRUE(swarm.world.said("stage 1 is nearly empty"));
  swarm.world.step(core::MinerReturned{swarm.miners[3]->index()});
  EXPECT_EQ(swarm.world.state().moves, 1u);
}

// A rebalanced run has more miners in one stage than it waits for, and fewer in another: a resumed one must start all the
// same.
TEST(Rebalancing, AResumedRunFillsTheStagesThatItWaitsFor) {
  ScriptedSwarm swarm(admin_spec(2, 2));
  core::RunResumed resumed;
  resumed.run_spec = encode(swarm.world.state().spec);
  resumed.data_plan = encode(swarm.world.state().data);
  resumed.stages = {{1, digest_of("a"), 1}, {1, digest_of("b"), 1}};
  for (uint64_t number : {1, 2, 3, 4}) {
    resumed.miners.push_back({node_of(number), number == 1 ? 1u : 0u, digest_of("own"), 3, 0, 0});
  }
  swarm.world.step(resumed);
  std::vector<std::unique_ptr<ScriptedMiner>> miners;
  for (uint64_t number : {1, 2, 3, 4}) {
    miners.push_back(std::make_unique<ScriptedMiner>(swarm.world, number));
    for (int i = 0; i < 3; ++i) miners.back()->sync();
  }
  EXPECT_EQ(swarm.world.state().moves, 1u);
  EXPECT_TRUE(swarm.world.said("the run waits for a miner of stage 1"));
  for (const auto& miner : miners) {
    miner->sync();
    if (miner->told_to_move) leave_and_join(*miner);
  }
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_EQ(swarm.world.state().moves, 1u);
}

// Who asks for a stage gets it, so that the stages fill unevenly; no later merge would mend what keeps a run from beginning.
TEST(Rebalancing, ARunThatHasNotBegunFillsItsStagesEvenWithoutAGain) {
  core::RunSpec spec = admin_spec(2, 2);
  spec.pipeline.rebalance_gain = 0;
  ScriptedSwarm swarm(spec);
  std::vector<std::unique_ptr<ScriptedMiner>> miners;
  for (uint64_t number : {1, 2, 3, 4}) {
    const bool asks = number == 4;
    miners.push_back(asks ? std::make_unique<ScriptedMiner>(swarm.world, number, 0)
                          : std::make_unique<ScriptedMiner>(swarm.world, number));
    for (int i = 0; i < 3; ++i) miners.back()->sync();
  }
  EXPECT_EQ(swarm.world.state().moves, 1u);
  for (const auto& miner : miners) {
    miner->sync();
    if (miner->told_to_move) leave_and_join(*miner);
    for (int i = 0; i < 3; ++i) miner->sync();
  }
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_EQ(miners.back()->record().stage, 0u);
}

}  // namespace
}  // namespace tessera::test
