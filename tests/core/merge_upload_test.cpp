// Uploads that are on their way while others reduce.
#include <gtest/gtest.h>

#include <set>

#include "support/merge_rounds.h"

namespace tessera::test {
namespace {

core::RunSpec four_miners() {
  core::RunSpec spec = one_stage(4);
  spec.model.ffn_width = 64;
  spec.merge.quorum = 1;
  return spec;
}

TEST(MergeUploads, OwnersBeginWhenAllHaveCommitted) {
  ScriptedSwarm swarm(four_miners());
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.stores = miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  EXPECT_FALSE(swarm.world.stage(0).merge->uploads_are_whole());
  swarm.sync_all();
  for (const auto& miner : swarm.miners) {
    ASSERT_TRUE(miner->answer().merge);
    EXPECT_FALSE(miner->answer().merge->uploads_whole);
  }
  for (const auto& miner : swarm.miners) miner->habits.stores = true;
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_TRUE(swarm.world.stage(0).merge->uploads_are_whole());
  EXPECT_TRUE(swarm.at(0, 0).sync().merge->uploads_whole);
  for (const auto& miner : swarm.miners) miner->habits.reduces = true;
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
  EXPECT_EQ(swarm.world.stage(0).past[0].participants.size(), 4u);
}

// Left out after the phase's time, accused of nothing, and waited for beforehand in the merges that follow.
TEST(MergeUploads, ALateOneIsLeftOutAndMustBeWholeBeforeTheNextManifest) {
  ScriptedSwarm swarm(four_miners());
  swarm.start();
  swarm.at(0, 3).habits.stores = false;
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  EXPECT_EQ(swarm.world.stage(0).merge->participants.size(), 4u);
  swarm.world.pass(swarm.world.state().spec.timeouts.merge_phase_ms);
  ASSERT_TRUE(swarm.reducing());
  EXPECT_EQ(swarm.world.stage(0).merge->participants.size(), 3u);
  EXPECT_GT(swarm.at(0, 3).record().whole_first, 0u);
  for (const auto& miner : swarm.miners) miner->habits.reduces = true;
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.at(0, 3).record().epoch == 1; }));
  EXPECT_EQ(swarm.world.stage(0).past[0].participants.size(), 3u);
  EXPECT_TRUE(swarm.world.stage(0).merge_verdicts.empty());
  EXPECT_EQ(swarm.at(0, 3).record().fresh_total(), 4u);  // its work counts in the next

  swarm.train(6);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).merge && swarm.world.stage(0).merge->uploads.size() == 4; }));
  EXPECT_FALSE(swarm.reducing());  // committed, and not whole
  swarm.at(0, 3).habits.stores = true;
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 2; }));
  EXPECT_EQ(swarm.world.stage(0).past[1].participants.size(), 4u);
}

TEST(MergeUploads, WhenAQuorumIsWholeTheOthersGetAGrace) {
  core::RunSpec spec = one_stage(4);
  spec.merge.quorum = 0.5;  // two are invited
  spec.timeouts.upload_grace_ms = 100;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.stores = miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  const std::vector<MinerIndex> participants = swarm.world.stage(0).merge->participants;
  ASSERT_EQ(participants.size(), 2u);
  const TimeMs grace = spec.timeouts.upload_grace_ms;
  ASSERT_LT(grace, spec.timeouts.merge_phase_ms);
  swarm.world.pass(grace);
  EXPECT_EQ(swarm.world.stage(0).merge->participants, participants);  // nobody is: they have the phase's whole time
  swarm.at(0, participants[0]).habits.stores = true;
  swarm.at(0, participants[0]).sync();
  swarm.at(0, participants[0]).sync();
  swarm.world.pass(grace - 1);
  EXPECT_EQ(swarm.world.stage(0).merge->participants, participants);
  swarm.world.pass(1);
  EXPECT_EQ(swarm.world.stage(0).merge->participants, (std::vector<MinerIndex>{participants[0]}));
}

TEST(MergeUploads, OneWhoseMinerDiesOnTheWayIsLeftOutAtOnce) {
  for (const bool restarts : {false, true}) {
    ScriptedSwarm swarm(four_miners());
    swarm.start();
    swarm.at(0, 1).habits.stores = false;
    for (const auto& miner : swarm.miners) miner->habits.reduces = false;
    swarm.train(4);
    ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
    const uint32_t first_shard = swarm.world.stage(0).merge->first_shard;
    if (restarts) {
      swarm.at(0, 1).restart();
      swarm.at(0, 1).join();
    } else {
      swarm.world.step(core::MinerLost{swarm.at(0, 1).index(), "silent"});
    }
    ASSERT_TRUE(swarm.reducing());
    EXPECT_EQ(swarm.world.stage(0).merge->participants, (std::vector<MinerIndex>{0, 2, 3}));
    EXPECT_NE(swarm.world.stage(0).merge->first_shard, first_shard);
    EXPECT_TRUE(swarm.world.stage(0).merge_verdicts.empty());
  }
}

// Before every upload is whole nobody can say that one is missing: neither an owner nor a recomputation.
TEST(MergeUploads, NothingIsHeldAgainstAnybodyWhileOneIsOnItsWay) {
  ScriptedSwarm swarm(four_miners());
  swarm.start();
  swarm.at(0, 3).habits.stores = false;
  swarm.at(0, 0).habits.cannot_read = 3;
  swarm.at(0, 1).habits.lies = true;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  for (int i = 0; i < 4; ++i) swarm.sync_all();
  EXPECT_TRUE(swarm.world.recomputations.empty());
  for (const core::MergeShard& shard : swarm.world.stage(0).merge->shards) {
    for (const auto& copy : {shard.copy_a, shard.copy_b}) {
      EXPECT_TRUE(!copy || copy->unavailable.is_zero());
    }
  }
  swarm.at(0, 3).habits.stores = true;
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_FALSE(swarm.world.recomputations.empty());
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
  std::set<MinerIndex> named;
  for (const core::MergeVerdict& verdict : swarm.world.stage(0).merge_verdicts) named.insert(verdict.miner);
  EXPECT_EQ(named, (std::set<MinerIndex>{swarm.at(0, 0).index(), swarm.at(0, 1).index()}));
}

}  // namespace
}  // namespace tessera::test
