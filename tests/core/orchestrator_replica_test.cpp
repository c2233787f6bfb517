// Replicas of a stage: stragglers, newcomers, those that differ, and what is published.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

using core::MergePhase;
using core::RunPhase;

// One stage is enough for most of it: a head that is the tail too.
core::RunSpec one_stage(uint32_t miners) {
  core::RunSpec spec = small_spec(1, miners);
  spec.training.steps = 1000;
  return spec;
}

TEST(Stragglers, CatchUpEpochByEpoch) {
  core::RunSpec spec = one_stage(3);
  spec.merge.quorum = 0.6;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& straggler = swarm.at(0, 2);
  straggler.habits.applies = false;
  const auto merge_once = [&] {
    for (int i = 0; i < 4; ++i) {
      swarm.train_one(0);
      swarm.train_one(1);
    }
    for (int i = 0; i < 4; ++i) {
      swarm.at(0, 0).sync();
      swarm.at(0, 1).sync();
    }
  };
  for (int i = 0; i < 3; ++i) merge_once();
  ASSERT_EQ(swarm.world.stage(0).epoch, 3u);
  EXPECT_EQ(straggler.record().epoch, 0u);
  straggler.habits.applies = true;
  for (Epoch epoch = 1; epoch <= 3; ++epoch) {
    const core::MergeDirective directive = *straggler.sync().merge;
    EXPECT_EQ(directive.phase, MergePhase::kApply);
    EXPECT_EQ(directive.target, epoch);
    EXPECT_FALSE(directive.participant);
  }
  straggler.sync();
  EXPECT_EQ(straggler.record().epoch, 3u);
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 0u);
}

TEST(Stragglers, ThatAreTooOldLoadTheStageAgain) {
  core::RunSpec spec = one_stage(3);
  spec.merge.quorum = 0.6;
  spec.merge.max_staleness = 2;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& straggler = swarm.at(0, 2);
  straggler.habits.applies = straggler.habits.loads = false;
  swarm.train_one(2);
  straggler.sync();
  for (int merge = 0; merge < 3; ++merge) {
    for (int i = 0; i < 4; ++i) {
      swarm.train_one(0);
      swarm.train_one(1);
    }
    for (int i = 0; i < 4; ++i) {
      swarm.at(0, 0).sync();
      swarm.at(0, 1).sync();
    }
  }
  ASSERT_EQ(swarm.world.stage(0).epoch, 3u);
  EXPECT_FALSE(straggler.record().ready);
  while (!swarm.world.stage(0).state_published) swarm.at(0, 0).sync();
  EXPECT_EQ(straggler.sync().assignment->epoch, 3u);
  straggler.habits.applies = straggler.habits.loads = true;
  straggler.sync();
  straggler.sync();
  EXPECT_TRUE(straggler.record().ready);
  EXPECT_EQ(straggler.record().epoch, 3u);
}

TEST(Newcomers, GetTheNewestPublishedStateAndCatchUpFromThere) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  swarm.sync_all();
  ASSERT_TRUE(swarm.world.stage(0).state_published);
  for (const auto& miner : swarm.miners) miner->habits.publishes = false;
  swarm.train(4);
  for (int i = 0; i < 4; ++i) swarm.sync_all();
  ASSERT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_FALSE(swarm.world.stage(0).state_published);
  ScriptedMiner newcomer(swarm.world, 50, 0);
  const core::Assignment assignment = *newcomer.sync().assignment;
  EXPECT_EQ(assignment.epoch, 0u);
  EXPECT_EQ(assignment.state, seed_state(0));
  EXPECT_EQ(newcomer.sync().merge->phase, MergePhase::kApply);
  newcomer.sync();
  EXPECT_EQ(newcomer.record().epoch, 1u);
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 0u);
  for (const auto& miner : swarm.miners) miner->habits.publishes = true;
  swarm.sync_all();
  swarm.sync_all();
  ScriptedMiner next(swarm.world, 51, 0);
  EXPECT_EQ(next.sync().assignment->epoch, 1u);
  EXPECT_EQ(next.answer().assignment->schedule_step, 2u);
}

// Merges since the newest published state are kept however old they are: the state can always be
// built again.
TEST(Newcomers, BuildTheStateFromTheSeedWhenNothingIsPublished) {
  core::RunSpec spec = one_stage(2);
  spec.merge.max_staleness = 1;
  ScriptedSwarm swarm(spec);
  for (const auto& miner : swarm.miners) miner->habits.publishes = false;
  swarm.start();
  for (Epoch epoch = 1; epoch <= 3; ++epoch) {
    swarm.train(4);
    ASSERT_TRUE(swarm.sync_until([&] {
      return swarm.world.stage(0).epoch == epoch && swarm.at(0, 1).record().epoch == epoch;
    }));
  }
  EXPECT_EQ(swarm.world.stage(0).past.size(), 3u);
  for (const auto& miner : swarm.miners)
    swarm.world.step(core::MinerLost{miner->index(), "silent"});
  ScriptedMiner newcomer(swarm.world, 50, 0);
  for (int i = 0; i < 6; ++i) newcomer.sync();
  EXPECT_EQ(newcomer.record().epoch, 3u);
  EXPECT_TRUE(
      swarm.world.stage(0).state_published);  // the lost ones' silence made it the publisher
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 0u);
  EXPECT_EQ(swarm.world.stage(0).past.size(), 1u);  // that is enough now
}

TEST(Replicas, OneThatDiffersWaitsUntilSomethingIsPublished) {
  ScriptedSwarm swarm(one_stage(2));
  for (const auto& miner : swarm.miners) miner->habits.publishes = false;
  swarm.at(0, 1).spoiled_state = digest_of("another seed");
  for (int i = 0; i < 4; ++i) swarm.sync_all();
  EXPECT_FALSE(swarm.at(0, 1).answer().assignment);
  EXPECT_EQ(swarm.at(0, 1).answer().reason,
            "waiting until a replica has published the stage's state");
  EXPECT_TRUE(swarm.at(0, 0).sync().publish_state);
  swarm.at(0, 0).habits.publishes = true;
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 1).record().ready; }));
  EXPECT_EQ(swarm.at(0, 1).answer().publish_state, false);
}

TEST(Replicas, AReportThatComesLateDoesNotTakeOneBack) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  const core::SyncRequest old = swarm.at(0, 0).report();
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return !swarm.world.recomputations.empty(); }));
  const core::RecomputeShard job = swarm.world.recomputations.front();
  const core::ShardTask task{job.shard, job.first_block, job.block_count, job.token};
  swarm.world.step(core::ShardRecomputed{job.stage, reduction(job.target, job.uploads, task), {}});
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 0).record().epoch == 1; }));
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(swarm.at(0, 0).node(), old, &answer));
  EXPECT_EQ(swarm.at(0, 0).record().epoch, 1u);
  EXPECT_FALSE(answer.merge);
}

TEST(Publishing, IsAskedOfTheFirstReadyMinerOnly) {
  ScriptedSwarm swarm(one_stage(2));
  for (const auto& miner : swarm.miners) miner->habits.publishes = false;
  swarm.start();
  EXPECT_TRUE(swarm.at(0, 0).sync().publish_state);
  EXPECT_FALSE(swarm.at(0, 1).sync().publish_state);
  swarm.world.step(core::MinerLost{0, "silent"});
  EXPECT_TRUE(swarm.at(0, 1).sync().publish_state);
}

TEST(Publishing, WhoNeverDoesIsPassedOver) {
  ScriptedSwarm swarm(one_stage(2));
  for (const auto& miner : swarm.miners) miner->habits.publishes = false;
  swarm.start();
  swarm.world.pass(swarm.world.state().spec.timeouts.merge_phase_ms);
  EXPECT_FALSE(swarm.at(0, 0).sync().publish_state);
  EXPECT_TRUE(swarm.at(0, 1).sync().publish_state);
  swarm.world.pass(swarm.world.state().spec.timeouts.merge_phase_ms);
  EXPECT_TRUE(swarm.at(0, 0).sync().publish_state);
}

TEST(Replicas, OneWhoseStateDiffersLoadsAgainAndIsCountedOnce) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.at(0, 1).spoiled_state = digest_of("another seed");
  swarm.sync_all();
  swarm.sync_all();
  swarm.at(0, 1).habits.loads = false;
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 1u);
  for (int i = 0; i < 5; ++i) swarm.sync_all();
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 1u);
  EXPECT_FALSE(swarm.at(0, 1).record().ready);
  swarm.at(0, 1).habits.loads = true;
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_TRUE(swarm.at(0, 1).record().ready);
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
}

// Whoever computes nothing is the first to name a result.
TEST(Replicas, TheFirstWordOnAMergesResultDoesNotStandAgainstAnother) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  swarm.train(4);
  ScriptedMiner& liar = swarm.at(0, 0);
  liar.spoiled_state = digest_of("a lie");
  ASSERT_TRUE(swarm.sync_until([&] { return !swarm.world.remakes.empty(); }));
  EXPECT_EQ(swarm.world.stage(0).state, digest_of("a lie"));
  for (int i = 0; i < 3; ++i) swarm.sync_all();
  EXPECT_EQ(swarm.world.remakes.size(), 1u);
  EXPECT_TRUE(swarm.at(0, 1).record().ready);
  EXPECT_TRUE(swarm.at(0, 2).record().ready);
  swarm.world.restart();
  ASSERT_EQ(swarm.world.remakes.size(), 1u);

  const core::RemakeState wanted = swarm.world.remakes.front();
  EXPECT_EQ(wanted.past.from, seed_state(0));
  const Digest truth = state_after(wanted.past.from, wanted.past.results);
  swarm.world.step(core::StateRemade{0, wanted.past.target, truth, ""});
  EXPECT_EQ(swarm.world.stage(0).state, truth);
  EXPECT_FALSE(liar.record().ready);
  swarm.sync_all();
  EXPECT_TRUE(swarm.at(0, 1).record().ready);
  EXPECT_EQ(swarm.at(0, 1).record().epoch, 1u);
  EXPECT_EQ(swarm.at(0, 2).record().epoch, 1u);
  EXPECT_FALSE(liar.record().ready);  // it says the same again, and is not believed
  liar.spoiled_state.reset();
  for (int i = 0; i < 3; ++i) swarm.sync_all();
  EXPECT_TRUE(liar.record().ready);
}

TEST(Replicas, AStateThatCannotBeMadeIsTheFirstOneTold) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  swarm.train(4);
  swarm.at(0, 0).spoiled_state = digest_of("a cosmic ray");  // the other one is the first to apply
  ASSERT_TRUE(swarm.sync_until([&] { return !swarm.world.remakes.empty(); }));
  ASSERT_NE(swarm.world.stage(0).state, digest_of("a cosmic ray"));
  swarm.world.step(core::StateRemade{0, 1, Digest{}, "the blobs are gone"});
  swarm.sync_all();
  EXPECT_FALSE(swarm.at(0, 0).record().ready);
  EXPECT_TRUE(swarm.at(0, 1).record().ready);
}

TEST(Replicas, ADriftAtAMergeIsFoundAlsoWhenTheStageHasMovedOn) {
  core::RunSpec spec = one_stage(3);
  spec.merge.quorum = 0.6;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& drifter = swarm.at(0, 2);
  drifter.habits.applies = false;
  for (int merge = 0; merge < 2; ++merge) {
    for (int i = 0; i < 4; ++i) {
      swarm.train_one(0);
      swarm.train_one(1);
    }
    for (int i = 0; i < 4; ++i) {
      swarm.at(0, 0).sync();
      swarm.at(0, 1).sync();
    }
  }
  ASSERT_EQ(swarm.world.stage(0).epoch, 2u);
  drifter.habits.applies = true;
  drifter.spoiled_state = digest_of("a cosmic ray");
  drifter.sync();  // applies the first merge, wrongly
  drifter.sync();
  EXPECT_EQ(swarm.world.stage(0).replica_mismatches, 1u);
  EXPECT_FALSE(drifter.record().ready);
  drifter.sync();
  drifter.sync();
  EXPECT_TRUE(drifter.record().ready);
  EXPECT_EQ(drifter.record().epoch, 2u);
}

}  // namespace
}  // namespace tessera::test
