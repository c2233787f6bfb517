// Proposals follow measured speed.
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

core::RunSpec fast_spec(uint32_t stages, uint32_t miners) {
  core::RunSpec spec = small_spec(stages, miners);
  spec.pipeline.random_pathway_share = 0;
  spec.pipeline.max_in_flight = 32;
  spec.training.steps = 4000;
  spec.merge.enabled = false;
  spec.timeouts.lease_ms = 60000;
  return spec;
}

core::Receipt timed_receipt(const ScriptedMiner& miner, uint64_t sequence, MicrobatchId id, float ms) {
  core::Receipt receipt;
  receipt.sequence = sequence;
  receipt.incarnation = miner.incarnation();
  receipt.miner = miner.index();
  receipt.stage = miner.record().stage;
  receipt.microbatch = id;
  receipt.accumulated = true;
  receipt.forward_ms = ms / 4;
  receipt.backward_ms = ms - ms / 4;
  return receipt;
}

// The tails finish what they are given at their own speed, one after the other; the head keeps so many under way.
std::vector<uint64_t> work_done(const std::vector<TimeMs>& times_ms, TimeMs length_ms, uint32_t in_flight) {
  ScriptedSwarm swarm(fast_spec(2, static_cast<uint32_t>(times_ms.size())));
  for (const auto& miner : swarm.miners) miner->habits.leases = false;
  swarm.start();
  OrchestratorWorld& world = swarm.world;
  ScriptedMiner& head = swarm.at(0, 0);
  std::vector<std::deque<MicrobatchId>> queues(times_ms.size());
  std::vector<TimeMs> free_at(times_ms.size(), 0);
  std::vector<uint64_t> done(times_ms.size(), 0);
  std::vector<uint64_t> sequences(times_ms.size() + 1, 0);
  uint32_t open = 0;
  uint64_t request = 0;
  for (TimeMs now = 0; now < length_ms; ++now) {
    world.pass(1);
    while (open < in_flight) {
      world.step(core::LeasesRequested{head.index(), ++request, 1});
      for (const core::Lease& lease : head.record().granted) {
        ++open;
        for (size_t t = 0; t < queues.size(); ++t) {
          if (lease.pathway[1] != swarm.at(1, static_cast<uint32_t>(t)).index()) continue;
          if (queues[t].empty()) free_at[t] = now + times_ms[t];
          queues[t].push_back(lease.microbatch);
        }
      }
    }
    for (size_t t = 0; t < queues.size(); ++t) {
      if (queues[t].empty() || now < free_at[t]) continue;
      const MicrobatchId id = queues[t].front();
      queues[t].pop_front();
      free_at[t] = now + times_ms[t];
      ++done[t];
      --open;
      const ScriptedMiner& tail = swarm.at(1, static_cast<uint32_t>(t));
      const auto ms = static_cast<float>(times_ms[t]);
      world.step(core::ReceiptsArrived{tail.index(), {timed_receipt(tail, ++sequences[t + 1], id, ms)}});
      world.step(core::ReceiptsArrived{head.index(), {timed_receipt(head, ++sequences[0], id, 1)}});
    }
  }
  return done;
}

TEST(Speed, MinersOfSpeedOneTwoFourGetWorkOneTwoFour) {
  const std::vector<uint64_t> done = work_done({40, 20, 10}, 20000, 14);
  // The ideal flow: 500 + 1000 + 2000 in 20 s.
  EXPECT_NEAR(static_cast<double>(done[0]), 500, 25);
  EXPECT_NEAR(static_cast<double>(done[1]), 1000, 50);
  EXPECT_NEAR(static_cast<double>(done[2]), 2000, 100);
}

TEST(Speed, ANewcomerCountsAsTheStagesMiddle) {
  ScriptedSwarm swarm(fast_spec(2, 3));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  swarm.world.step(core::LeasesRequested{head.index(), 50, 20});
  ASSERT_EQ(head.record().granted.size(), 20u);
  uint64_t sequence = 0;
  for (const auto& [replica, ms] : 
       {std::pair(0u, 10.0f), std::pair(1u, 40.0f)}) {
    const ScriptedMiner& tail = swarm.at(1, replica);
    std::vector<core::Receipt> receipts;
    sequence = 0;
    for (const core::Lease& lease : head.record().granted) {
      if (lease.pathway[1] == tail.index()) {
        receipts.push_back(timed_receipt(tail, ++sequence, lease.microbatch, ms));
      }
    }
    ASSERT_FALSE(receipts.empty());
    swarm.world.step(core::ReceiptsArrived{tail.index(), receipts});
  }
  EXPECT_EQ(swarm.at(1, 0).record().microbatch_us, 10000u);
  EXPECT_EQ(swarm.at(1, 1).record().microbatch_us, 40000u);
  EXPECT_EQ(swarm.at(1, 2).record().microbatch_us, 0u);
  EXPECT_EQ(swarm.world.core().index().stage(1).median_us(), 40000u);
}

// The first microbatch after a start tunes kernels: for a moment a miner looks a thousand times slower than it is. It must not
// go without work for that.
TEST(Speed, AColdStartIsForgottenAtOnce) {
  ScriptedSwarm swarm(fast_spec(1, 1));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  swarm.world.step(core::LeasesRequested{head.index(), 50, 8});
  std::vector<uint32_t> times;
  uint64_t sequence = 0;
  for (const float ms : {2000.0f, 4.0f, 4.0f, 4.0f, 900.0f, 4.0f}) {
    swarm.world.step(
        core::ReceiptsArrived{head.index(), {timed_receipt(head, sequence + 1, sequence, ms)}});
    ++sequence;
    times.push_back(head.record().microbatch_us);
  }
  EXPECT_EQ(times, (std::vector<uint32_t>{2000000, 4000, 4000, 4000, 4000, 4000}));
}

TEST(Speed, TimesThatNobodyCanHaveNeededAreCutOff) {
  ScriptedSwarm swarm(fast_spec(1, 1));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  swarm.world.step(core::LeasesRequested{head.index(), 50, 5});
  const float infinity = std::numeric_limits<float>::infinity();
  const float values[] = {std::nanf(""), -5, 0, infinity, 1e-9f};
  uint64_t sequence = 0;
  std::vector<uint32_t> averages;
  for (const float ms : values) {
    core::Receipt receipt = timed_receipt(head, sequence + 1, sequence, 1);
    ++sequence;
    receipt.forward_ms = receipt.backward_ms = ms;
    swarm.world.step(core::ReceiptsArrived{head.index(), {receipt}});
    averages.push_back(head.record().microbatch_us);
  }
  EXPECT_EQ(averages[0], 0u);
  EXPECT_EQ(averages[1], 0u);
  EXPECT_EQ(averages[2], 0u);
  EXPECT_EQ(averages[3], 3600000000u);
  EXPECT_EQ(averages[4], 10u);
}

}  // namespace
}  // namespace tessera::test
