// Merges that are aborted or lose a participant: what counts in the next.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/merge_rounds.h"

namespace tessera::test {
namespace {

using core::MergePhase;

TEST(Merge, AnUnreadableUploadAbortsAndTheOthersGoOnWithoutIt) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  swarm.at(0, 1).habits.lies = true;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.recomputations.size() == 1; }));
  const core::RecomputeShard job = swarm.world.recomputations.front();
  const auto liar = swarm.world.stage(0).merge->uploads.at(swarm.at(0, 1).index());
  swarm.world.step(core::ShardRecomputed{0, {.target = job.target, .shard = job.shard}, {liar.object}});
  EXPECT_EQ(swarm.world.stage(0).merges_aborted, 1u);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 4u);
  swarm.at(0, 1).habits.lies = false;
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.at(0, 1).record().epoch == 1; }));
  EXPECT_EQ(swarm.world.stage(0).past[0].participants, (std::vector<MinerIndex>{0}));
  EXPECT_EQ(swarm.at(0, 1).record().fresh_total(),
            4u);  // its work is in its masters, and counts in the next merge
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 2; }));
  EXPECT_EQ(swarm.world.stage(0).past[1].participants, (std::vector<MinerIndex>{0, 1}));
}

TEST(Merge, AnUploadThatMerelyCouldNotBeFetchedIsTriedAgain) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  swarm.at(0, 0).habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  swarm.world.pass(500);
  ASSERT_EQ(swarm.world.recomputations.size(), 1u);
  swarm.world.step(
      core::ShardRecomputed{0, {.target = 1, .shard = swarm.world.recomputations[0].shard}, {}});
  EXPECT_EQ(swarm.world.stage(0).merges_aborted, 1u);
  EXPECT_TRUE(swarm.at(0, 0).record().upload);  // it is committed again
  swarm.at(0, 0).habits.reduces = true;
  swarm.world.recomputations.clear();
  swarm.world.pass(500);
  EXPECT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
}

// A merge that fails at its uploads begins again with another manifest: shards of the first must
// not count in it.
TEST(Merge, CommitsOfAnAbortedMergeDoNotCountInTheNext) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  swarm.at(0, 2).habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  swarm.sync_all();
  EXPECT_TRUE(swarm.at(0, 0).report().shards.size() == 2);
  swarm.world.pass(500);
  ASSERT_FALSE(swarm.world.recomputations.empty());
  const core::RecomputeShard job = swarm.world.recomputations.front();
  const Digest broken = swarm.world.stage(0).merge->uploads.at(2).object;
  const uint32_t first = swarm.world.stage(0).merge->first_shard;
  swarm.world.step(core::ShardRecomputed{0, {.target = job.target, .shard = job.shard}, {broken}});
  // What was asked for in the first comes late, when the second has its manifest.
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  for (uint32_t i = 0; i < 3; ++i) {
    swarm.world.step(
        core::ShardCommitted{0, {job.target, first + i, digest_of("of the first manifest")}});
    swarm.world.step(
        core::ShardRecomputed{0, {job.target, first + i, digest_of("of the first manifest")}, {}});
  }
  swarm.world.recomputations.clear();
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 1; }));
  const core::PastMerge& past = swarm.world.stage(0).past[0];
  ASSERT_EQ(past.participants, (std::vector<MinerIndex>{0, 1}));
  ASSERT_EQ(past.results.size(), 1u);
  EXPECT_NE(past.results[0].result, digest_of("of the first manifest"));
  EXPECT_TRUE(swarm.world.recomputations.empty());
}

TEST(Merge, EveryParticipantGoneAborts) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.uploads = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.world.stage(0).merge);
  swarm.world.step(core::MinerLost{0, "silent"});
  EXPECT_TRUE(swarm.world.stage(0).merge);
  swarm.world.step(core::MinerLost{1, "silent"});
  EXPECT_FALSE(swarm.world.stage(0).merge);
  EXPECT_TRUE(swarm.world.said("every participant is gone"));
}

TEST(Merge, ALostMinersUploadCountsButARestartedOnesDoesNot) {
  for (const bool restarts : {false, true}) {
    ScriptedSwarm swarm(one_stage(3));
    swarm.start();
    swarm.at(0, 2).habits.uploads = false;
    swarm.train(4);
    swarm.at(0, 0).sync();
    swarm.at(0, 0).sync();
    swarm.at(0, 1).sync();
    swarm.at(0, 1).sync();
    ASSERT_EQ(swarm.world.stage(0).merge->uploads.size(), 2u);
    if (restarts) {
      swarm.at(0, 0).restart();
      swarm.at(0, 0).join();
    } else {
      swarm.world.step(core::MinerLost{0, "silent"});
    }
    swarm.world.pass(500);
    ASSERT_TRUE(swarm.world.stage(0).merge);
    EXPECT_EQ(swarm.world.stage(0).merge->participants,
              restarts ? (std::vector<MinerIndex>{1}) : (std::vector<MinerIndex>{0, 1}));
  }
}

// The steps of a new process are counted from 0 again: the end of the old one's merge must not take
// them for its own.
TEST(Merge, AProcessThatRestartsDuringTheReductionKeepsItsNewCounts) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  swarm.at(0, 1).restart();
  swarm.at(0, 1).sync();
  ASSERT_EQ(swarm.world.recomputations.size(), 1u);  // nothing waits for it
  swarm.at(0, 1).sync();
  ASSERT_TRUE(swarm.at(0, 1).record().ready);
  swarm.train_one(1);
  swarm.train_one(1);
  swarm.at(0, 1).sync();
  EXPECT_EQ(swarm.at(0, 1).record().fresh_total(), 2u);
  finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_EQ(swarm.at(0, 1).record().fresh_total(), 2u);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 0u);
}

}  // namespace
}  // namespace tessera::test
