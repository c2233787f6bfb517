// Heads that die with leased microbatches, attempts, and how long a lease is waited for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

core::RunSpec long_spec(uint32_t stages, uint32_t miners) {
  core::RunSpec spec = small_spec(stages, miners);
  spec.training.steps = 400;
  spec.timeouts.lease_ms = 10000;
  return spec;
}

core::Lease lease_of(const ScriptedMiner& head, MicrobatchId id) {
  for (const core::Lease& lease : head.leases) {
    if (lease.microbatch == id) return lease;
  }
  ADD_FAILURE() << "microbatch " << id << " is not leased to miner " << head.index();
  return {};
}

TEST(Repair, AnotherHeadGoesOnWithTheSameAttemptAndPathway) {
  ScriptedSwarm swarm(long_spec(3, 2));
  swarm.start();
  swarm.at(0, 0).sync();
  const core::Lease lost = swarm.at(0, 0).leases.front();
  EXPECT_FALSE(lost.repair);
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  EXPECT_EQ(swarm.world.state().reissue.count(lost.microbatch), 1u);  // at once
  ScriptedMiner& other = swarm.at(0, 1);
  other.leases.clear();
  other.sync();
  const core::Lease again = lease_of(other, lost.microbatch);
  EXPECT_TRUE(again.repair);
  EXPECT_EQ(again.attempt, lost.attempt);
  EXPECT_EQ(again.pathway[0], other.index());
  EXPECT_EQ(again.pathway[1], lost.pathway[1]);
  EXPECT_EQ(again.pathway[2], lost.pathway[2]);
  EXPECT_GE(swarm.world.state().repaired, 1u);
  EXPECT_EQ(swarm.world.state().reissued, 0u);
}

TEST(Repair, TheOtherHeadsShareWhatADeadOneHeldAlsoBeyondWhatTheyAskFor) {
  core::RunSpec spec = long_spec(2, 3);
  spec.pipeline.max_in_flight = 4;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->microbatch_ms = 100;
  swarm.train(1);
  swarm.sync_all();
  ASSERT_EQ(swarm.at(0, 0).leases.size(), 4u);
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  for (const uint32_t replica : {1u, 2u}) {
    ScriptedMiner& head = swarm.at(0, replica);
    ASSERT_EQ(head.leases.size(), 4u);
    head.sync();  // it asks for none
    ASSERT_EQ(head.leases.size(), 6u);
    EXPECT_TRUE(head.leases[4].repair);
    EXPECT_TRUE(head.leases[5].repair);
  }
  EXPECT_TRUE(swarm.world.state().reissue.empty());
}

TEST(Repair, WhoIsGoneFromTheRestOfThePathwayIsReplaced) {
  ScriptedSwarm swarm(long_spec(2, 2));
  swarm.start();
  swarm.at(0, 0).sync();
  const core::Lease lost = swarm.at(0, 0).leases.front();
  swarm.world.step(core::MinerLost{lost.pathway[1], "silent"});
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  swarm.at(0, 1).leases.clear();
  swarm.at(0, 1).sync();
  const core::Lease again = lease_of(swarm.at(0, 1), lost.microbatch);
  EXPECT_TRUE(again.repair);
  EXPECT_NE(again.pathway[1], lost.pathway[1]);
}

TEST(Repair, AHeadThatDidItsPartIsNotMissed) {
  ScriptedSwarm swarm(long_spec(2, 2));
  swarm.start();
  swarm.at(0, 0).sync();
  const core::Lease lease = swarm.at(0, 0).leases.front();
  swarm.at(0, 0).receipt(lease.microbatch);
  swarm.at(0, 0).sync();
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  EXPECT_EQ(swarm.world.state().reissue.count(lease.microbatch), 0u);
  swarm.at(1, 0).receipt(lease.microbatch);
  swarm.at(1, 0).sync();
  EXPECT_EQ(swarm.world.state().done, 1u);
}

TEST(Repair, ASecondHeadThatDiesCostsAnAttempt) {
  ScriptedSwarm swarm(long_spec(2, 3));
  swarm.start();
  swarm.at(0, 0).sync();
  const core::Lease lost = swarm.at(0, 0).leases.front();
  for (uint32_t head = 0; head < 2; ++head) {
    swarm.world.step(core::MinerLost{swarm.at(0, head).index(), "silent"});
    swarm.at(0, head + 1).leases.clear();
    swarm.at(0, head + 1).sync();
  }
  const core::Lease third = lease_of(swarm.at(0, 2), lost.microbatch);
  EXPECT_FALSE(third.repair);
  EXPECT_EQ(third.attempt, lost.attempt + 1);
}

// Whoever did it, one gradient of a (stage, microbatch) counts.
TEST(Repair, TheOldHeadsReceiptAfterTheNewOnesIsCountedAsDouble) {
  ScriptedSwarm swarm(long_spec(1, 2));
  swarm.start();
  swarm.at(0, 0).sync();
  const core::Lease lost = swarm.at(0, 0).leases.front();
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  swarm.at(0, 1).leases.clear();
  swarm.at(0, 1).sync();
  swarm.at(0, 1).receipt(lost.microbatch);
  swarm.at(0, 1).sync();
  EXPECT_EQ(swarm.world.state().done, 1u);
  swarm.at(0, 0).receipt(lost.microbatch);
  swarm.at(0, 0).sync();
  EXPECT_EQ(swarm.world.state().done, 1u);
  EXPECT_EQ(swarm.world.state().double_counted, 1u);
}

TEST(Attempts, OneThatWasNeverIssuedCountsNothing) {
  ScriptedSwarm swarm(long_spec(2, 1));
  swarm.start();
  swarm.at(0, 0).sync();
  swarm.at(1, 0).receipt(0, 1);
  swarm.at(1, 0).sync();
  EXPECT_EQ(swarm.at(1, 0).record().counted, 0u);
  EXPECT_TRUE(swarm.world.said("attempt 1 of microbatch 0, which was never issued"));
}

TEST(Attempts, AnOlderOnesLateGradientCountsInPlaceOfTheNewerOnes) {
  ScriptedSwarm swarm(long_spec(2, 1));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  head.sync();
  swarm.world.pass(10000);
  head.leases.clear();
  head.sync();
  ASSERT_EQ(lease_of(head, 0).attempt, 1u);
  swarm.at(1, 0).receipt(0, 0);
  swarm.at(1, 0).sync();
  EXPECT_EQ(swarm.at(1, 0).record().counted, 1u);
  swarm.at(1, 0).receipt(0, 1);
  swarm.at(1, 0).sync();
  EXPECT_EQ(swarm.at(1, 0).record().counted, 1u);
  EXPECT_EQ(swarm.world.state().double_counted, 1u);
}

TEST(Deadlines, FollowTheTimesOfTheLastMicrobatches) {
  core::RunSpec spec = long_spec(1, 1);
  spec.merge.enabled = false;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  for (int i = 0; i < 16; ++i) {
    head.leases.clear();
    head.sync();
    ASSERT_FALSE(head.leases.empty());
    EXPECT_EQ(head.leases.front().lifetime_ms, 10000u) << i;  // not enough is known yet
    swarm.world.pass(500 + i % 3);
    head.receipt(head.leases.front().microbatch);
    if (head.leases.size() > 1) head.receipt(head.leases.back().microbatch);
    head.sync();
    if (swarm.world.state().completion_ms.size() >= 16) break;
  }
  head.leases.clear();
  head.sync();
  ASSERT_FALSE(head.leases.empty());
  EXPECT_GE(head.leases.front().lifetime_ms, 3 * 500u);
  EXPECT_LE(head.leases.front().lifetime_ms, 3 * 502u);
}

// In a wide swarm the first that are done are those that met fast miners only. The others are not late.
TEST(Deadlines, AreNotLearntFromTheFastOnesOfAPipelineThatIsStillFilling) {
  core::RunSpec spec = long_spec(1, 8);
  spec.merge.enabled = false;
  spec.pipeline.max_in_flight = 8;
  spec.training.steps = 100000;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& head : swarm.miners) head->sync();
  const size_t open = swarm.world.state().open.size();
  ASSERT_GT(open, 40u);
  // The first miner needs a second; the others half of the configured lifetime.
  const auto turn = [&](ScriptedMiner& head) {
    for (const core::Lease& lease : head.leases) head.receipt(lease.microbatch, lease.attempt);
    head.leases.clear();
    head.sync();
    head.sync();
  };
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < 5; ++i) {
      swarm.world.pass(1000);
      ASSERT_TRUE(swarm.world.state().reissue.empty()) << round << ", " << i;
      turn(swarm.at(0, 0));
    }
    for (uint32_t slow = 1; slow < 8; ++slow) turn(swarm.at(0, slow));
  }
  EXPECT_GT(swarm.world.state().done, 2 * open);
  EXPECT_EQ(swarm.world.state().reissued, 0u);
}

}  // namespace
}  // namespace tessera::test
