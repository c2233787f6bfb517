// Orders of operators: stages of miners, drains, changes of the specification and of the stages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/operator_orders.h"

namespace tessera::test {
namespace {

using core::Command;
using core::Commanded;
using core::RunPhase;
using testing::HasSubstr;

// ---- orders ---------------------------------------------------------------------------------------------------------

TEST(Assign, TakesEffectAtTheEpochBoundaryAndPins) {
  ScriptedSwarm swarm(admin_spec(2, 2));
  swarm.start();
  ScriptedMiner& miner = swarm.at(0, 1);
  obey(swarm.world, swarm.world.core().assign_order(miner.index(), 1, false));
  miner.sync();
  EXPECT_FALSE(miner.told_to_move);
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 1; }));
  miner.sync();
  ASSERT_TRUE(miner.told_to_move);
  leave_and_join(miner);
  EXPECT_EQ(miner.record().stage, 1u);
  EXPECT_TRUE(miner.record().pinned);
  miner.restart();
  miner.join();
  EXPECT_EQ(miner.record().stage, 1u);  // it stays there through restarts
  const auto again = swarm.world.core().assign_order(miner.index(), 1, false);
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->has_value());
}

// A process that was told of no stage yet would take the other one for its first.
TEST(Assign, AMinerThatStillLoadsDoesThatFirst) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  ScriptedMiner late(swarm.world, 901, 1);
  late.join();
  obey(swarm.world, swarm.world.core().assign_order(late.index(), 0, false));
  ASSERT_EQ(late.record().assigned_stage, std::optional<StageIndex>(0));
  ASSERT_TRUE(late.sync().assignment.has_value());
  EXPECT_EQ(late.answer().assignment->stage, 1u);
  late.sync();
  EXPECT_TRUE(late.record().ready);
  late.sync();
  EXPECT_TRUE(late.told_to_move);
  leave_and_join(late);
  EXPECT_EQ(late.record().stage, 0u);
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches + swarm.world.stage(1).replica_mismatches, 0u);
}

TEST(Assign, IsRefusedWithTheReason) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  const core::Orchestrator& core = swarm.world.core();
  EXPECT_THAT(why(core.assign_order(9, 0, false)), HasSubstr("there is no miner 9"));
  EXPECT_THAT(why(core.assign_order(0, 2, false)), HasSubstr("the run has the stages 0 to 1"));
  EXPECT_THAT(why(core.assign_order(0, 1, false)), HasSubstr("stage 0 would be left without a ready miner"));
  EXPECT_TRUE(core.assign_order(0, 1, true).ok());
}

TEST(Drain, SendsAMinerAway) {
  ScriptedSwarm swarm(admin_spec(2, 2));
  swarm.start();
  ScriptedMiner& miner = swarm.at(1, 1);
  EXPECT_THAT(why(swarm.world.core().drain_order(77)), HasSubstr("there is no miner 77"));
  obey(swarm.world, swarm.world.core().drain_order(miner.index()));
  EXPECT_FALSE(swarm.world.core().drain_order(miner.index())->has_value());
  EXPECT_TRUE(miner.sync().drain);
  EXPECT_THAT(miner.record().why, HasSubstr("sent away"));
  miner.sync();
  EXPECT_FALSE(miner.record().live);
  EXPECT_THAT(why(swarm.world.core().drain_order(swarm.at(1, 0).index() + 50)), HasSubstr("no miner"));
}

TEST(SpecChange, ReachesEveryMinerAndOutlivesTheOrchestrator) {
  ScriptedSwarm swarm(admin_spec(2, 1));
  swarm.start();
  const uint64_t version = swarm.world.state().spec_version;
  obey(swarm.world, swarm.world.core().spec_order("training.learning_rate", "0.5"));
  EXPECT_EQ(swarm.world.state().spec.training.learning_rate, 0.5);
  EXPECT_EQ(swarm.world.state().spec_version, version + 1);
  swarm.world.restart();
  core::RunSpec told;
  const core::SyncAnswer& answer = swarm.at(0, 0).sync();
  ASSERT_TRUE(answer.run_spec && decode(*answer.run_spec, &told));
  EXPECT_EQ(told.training.learning_rate, 0.5);
  EXPECT_EQ(answer.spec_version, version + 1);
  EXPECT_FALSE(swarm.world.core().spec_order("training.learning_rate", "0.5")->has_value());
  EXPECT_THAT(why(swarm.world.core().spec_order("model.layers", "3")), HasSubstr("can't change"));
}

TEST(SpecChange, KeepsInMindWhatFits) {
  ScriptedSwarm swarm(admin_spec(1, 1));
  swarm.start();
  ScriptedMiner exact(swarm.world, 901);
  exact.registration().memory_bytes = swarm.world.stage(0).need_cpu_bytes;
  exact.join();
  EXPECT_THAT(why(swarm.world.core().spec_order("pipeline.max_in_flight", "1000")), HasSubstr("would no longer fit"));
}

TEST(SpecChange, AnOuterRateIsThatOfTheMergesCompletion) {
  ScriptedSwarm swarm(admin_spec(1, 2));
  swarm.start();
  swarm.at(0, 1).habits.applies = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 1; }));
  obey(swarm.world, swarm.world.core().spec_order("merge.outer_learning_rate", "0.125"));
  const core::SyncAnswer& late = swarm.at(0, 1).sync();
  ASSERT_TRUE(late.merge && late.merge->phase == core::MergePhase::kApply);
  EXPECT_EQ(late.merge->outer_learning_rate, 0.7);
}

// ---- other stages ---------------------------------------------------------------------------------------------------

core::RunSpec six_layers() {
  core::RunSpec spec = admin_spec(2, 2);
  spec.model.layers = 6;
  spec.pipeline.stage_layers = {3, 3};
  return spec;
}

TEST(Stages, AreChangedAfterDrainingAndMerging) {
  ScriptedSwarm swarm(six_layers());
  swarm.start();
  swarm.train(1);
  obey(swarm.world, swarm.world.core().stages_order({2, 4}));
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kDraining);
  ScriptedMiner late(swarm.world, 901);
  EXPECT_THAT(late.sync().reason, HasSubstr("the run's stages are being changed"));
  for (int i = 0; i < 40 && swarm.world.restages.empty(); ++i) {
    for (uint32_t replica : {0, 1}) {
      while (!swarm.at(0, replica).leases.empty()) swarm.train_one(replica);
    }
    swarm.sync_all();
  }
  ASSERT_EQ(swarm.world.restages.size(), 1u);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRestaging);
  swarm.world.restart();  // the background job begins again
  const uint64_t id = swarm.world.state().restage->id;
  const Digest a = digest_of("new 0"), b = digest_of("new 1");
  swarm.world.step(core::StagesChanged{id + 7, true, "", {1, 1}, {a, b}});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRestaging);
  const Epoch epoch = swarm.world.stage(0).epoch;
  swarm.world.step(core::StagesChanged{id, true, "", {100, 200}, {a, b}});
  const core::OrchestratorState& state = swarm.world.state();
  EXPECT_EQ(state.phase, RunPhase::kRunning);
  EXPECT_EQ(state.spec.pipeline.stage_layers, (std::vector<uint32_t>{2, 4}));
  EXPECT_EQ(state.stages[0].epoch, epoch + 1);
  EXPECT_EQ(state.stages[1].state, b);
  EXPECT_EQ(state.stages[1].values, 200u);
  EXPECT_TRUE(late.record().placed);
  for (const auto& miner : swarm.miners) {
    const StageIndex stage = miner->record().stage;
    miner->sync();
    EXPECT_FALSE(miner->record().ready);
    miner->restart();
    miner->join();
    for (int i = 0; i < 2; ++i) miner->sync();
    EXPECT_EQ(miner->record().stage, stage);
    EXPECT_TRUE(miner->record().ready);
    EXPECT_EQ(miner->epoch(), state.stages[stage].epoch);
  }
  swarm.train(2);
}

// A local state is of the layers that its stage had: whoever comes for it later must not get it.
TEST(Stages, ForgetLocalStatesOfTheOldLayers) {
  ScriptedSwarm swarm(six_layers());
  core::RunResumed resumed;
  resumed.run_spec = encode(swarm.world.state().spec);
  resumed.data_plan = encode(small_data());
  for (StageIndex s = 0; s < 2; ++s) resumed.stages.push_back({5, digest_of("state"), 4});
  for (const uint64_t number : {901, 902}) resumed.miners.push_back({node_of(number), 1, digest_of("local"), 17, 7, 1});
  swarm.world.step(resumed);
  swarm.start();
  ScriptedMiner loading(swarm.world, 901, 1), away(swarm.world, 902, 1);
  loading.habits.loads = false;
  loading.join();
  ASSERT_TRUE(loading.record().resumed.has_value());
  ASSERT_EQ(swarm.world.state().resumable.count(node_of(902)), 1u);
  obey(swarm.world, swarm.world.core().stages_order({2, 4}));
  for (int i = 0; i < 40 && swarm.world.restages.empty(); ++i) {
    for (uint32_t replica : {0, 1}) {
      while (!swarm.at(0, replica).leases.empty()) swarm.train_one(replica);
    }
    swarm.sync_all();
  }
  ASSERT_EQ(swarm.world.restages.size(), 1u);
  swarm.world.step(core::StagesChanged{swarm.world.state().restage->id, true, "", {100, 200}, {digest_of("a"), digest_of("b")}});
  EXPECT_FALSE(loading.record().resumed.has_value());
  EXPECT_TRUE(swarm.world.state().resumable.empty());
  for (ScriptedMiner* miner : {&loading, &away}) {
    miner->restart();
    miner->join();
    const core::SyncAnswer& answer = miner->sync();
    ASSERT_TRUE(answer.assignment.has_value());
    EXPECT_TRUE(answer.assignment->local_state.is_zero());
    EXPECT_EQ(miner->record().fresh_total(), 0u);
  }
}

TEST(Stages, AreRefusedWithTheReason) {
  ScriptedSwarm swarm(six_layers());
  swarm.start();
  const core::Orchestrator& core = swarm.world.core();
  EXPECT_THAT(why(core.stages_order({6})), HasSubstr("their number can't change"));
  EXPECT_THAT(why(core.stages_order({5, 2})), HasSubstr("add up to 7"));
  EXPECT_FALSE(core.stages_order({3, 3})->has_value());
  ScriptedMiner exact(swarm.world, 901, 1);
  exact.registration().memory_bytes = swarm.world.stage(1).need_cpu_bytes;
  exact.join();
  EXPECT_THAT(why(core.stages_order({1, 5})), HasSubstr("would not fit"));
  swarm.world.step(Commanded{Command::kPause});
  EXPECT_THAT(why(core.stages_order({2, 4})), HasSubstr("the run is paused"));
}

TEST(Stages, StayAsTheyAreIfTheRunCantDrain) {
  ScriptedSwarm swarm(six_layers());
  swarm.start();
  swarm.sync_all();
  obey(swarm.world, swarm.world.core().stages_order({2, 4}));
  swarm.world.pass(1000);
  swarm.world.pass(1000);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_FALSE(swarm.world.state().restage.has_value());
  EXPECT_EQ(swarm.world.state().spec.pipeline.stage_layers, (std::vector<uint32_t>{3, 3}));
  EXPECT_TRUE(swarm.world.said("the stages stay as they are"));
}

TEST(Stages, AStopGoesFirst) {
  ScriptedSwarm swarm(six_layers());
  swarm.start();
  obey(swarm.world, swarm.world.core().stages_order({2, 4}));
  swarm.world.step(Commanded{Command::kStop});
  EXPECT_FALSE(swarm.world.state().restage.has_value());
  EXPECT_EQ(swarm.world.state().after_checkpoint, RunPhase::kStopped);
}

}  // namespace
}  // namespace tessera::test
