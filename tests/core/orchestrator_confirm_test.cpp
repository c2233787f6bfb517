// What a miner's upload is weighted by: gradients that both neighbours' receipts confirm.
#include <gtest/gtest.h>

#include <set>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

core::RunSpec long_spec(uint32_t stages, uint32_t miners_per_stage) {
  core::RunSpec spec = small_spec(stages, miners_per_stage);
  spec.training.steps = 64;
  spec.merge.min_microbatches = 100;  // no merge takes the counts
  spec.timeouts.lease_ms = 60000;
  return spec;
}

core::Lease lease_of(ScriptedSwarm& swarm, uint32_t replica) {
  ScriptedMiner& head = swarm.at(0, replica);
  for (int tries = 0; tries < 3 && head.leases.empty(); ++tries) head.sync();
  const core::Lease lease = head.leases.at(0);
  head.leases.erase(head.leases.begin());
  return lease;
}

std::vector<uint32_t> counts(ScriptedSwarm& swarm) {
  std::vector<uint32_t> counts;
  for (const auto& miner : swarm.miners) counts.push_back(miner->record().fresh_total());
  return counts;
}

TEST(Confirmation, TakesBothNeighboursInAnyOrder) {
  const std::vector<std::vector<StageIndex>> orders = {{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}, {0, 2, 1}, {2, 0, 1}};
  for (const auto& order : orders) {
    ScriptedSwarm swarm(long_spec(3, 1));
    swarm.start();
    const core::Lease lease = lease_of(swarm, 0);
    for (StageIndex s = 0; s < 3; ++s) swarm.at(s, 0).receipt(lease.microbatch, lease.attempt);
    std::vector<uint32_t> expected(3, 0);
    std::set<StageIndex> told;
    for (const StageIndex s : order) {
      swarm.at(s, 0).sync();
      told.insert(s);
      for (StageIndex stage = 0; stage < 3; ++stage) {
        expected[stage] = told.count(stage) > 0 && (stage == 0 || told.count(stage - 1) > 0) &&
                          (stage == 2 || told.count(stage + 1) > 0);
      }
      EXPECT_EQ(counts(swarm), expected);
    }
    EXPECT_EQ(swarm.world.state().done, 1u);
  }
}

TEST(Confirmation, InventedReceiptsWeighNothing) {
  ScriptedSwarm swarm(long_spec(3, 2));
  swarm.start();
  const core::Lease lease = lease_of(swarm, 0);
  swarm.at(1, 1).receipt(lease.microbatch, lease.attempt);  // it never had it
  swarm.at(1, 1).sync();
  for (StageIndex s = 0; s < 3; ++s) swarm.at(s, 0).receipt(lease.microbatch, lease.attempt);
  swarm.sync_all();
  EXPECT_EQ(counts(swarm), (std::vector<uint32_t>{1, 0, 1, 0, 1, 0}));  // who did the work has it, though it was not first
  EXPECT_EQ(swarm.at(1, 1).record().counted, 1u);
}

TEST(Confirmation, DifferentHashesConfirmNothing) {
  ScriptedSwarm swarm(long_spec(3, 1));
  swarm.start();
  for (const bool forward : {true, false}) {
    const core::Lease lease = lease_of(swarm, 0);
    for (StageIndex s = 0; s < 3; ++s) swarm.at(s, 0).receipt(lease.microbatch, lease.attempt);
    core::Receipt& receipt = swarm.at(1, 0).last_receipt();
    (forward ? receipt.output_hash : receipt.gradient_out_hash) = digest_of("something else");
    swarm.sync_all();
  }
  // Once the middle and the tail differ, once the head and the middle.
  EXPECT_EQ(counts(swarm), (std::vector<uint32_t>{1, 0, 1}));
  EXPECT_EQ(swarm.world.state().done, 2u);
}

TEST(Confirmation, BothSidesOfARepairSayThatItWasOne) {
  ScriptedSwarm swarm(long_spec(2, 1));
  swarm.start();
  for (const bool both : {false, true}) {
    const core::Lease lease = lease_of(swarm, 0);
    for (StageIndex s = 0; s < 2; ++s) {
      swarm.at(s, 0).receipt(lease.microbatch, lease.attempt);
      swarm.at(s, 0).last_receipt().repaired = both || s == 0;
    }
    swarm.at(0, 0).last_receipt().output_hash = digest_of("with the weights of the one that is gone");
    swarm.sync_all();
  }
  EXPECT_EQ(counts(swarm), (std::vector<uint32_t>{1, 1}));
}

TEST(Confirmation, AProcessThatIsGoneAndWeightsThatWereLoadedOverGetNone) {
  ScriptedSwarm swarm(long_spec(2, 2));
  swarm.start();
  const core::Lease lease = lease_of(swarm, 0);
  ScriptedMiner& tail = swarm.at(1, 0);
  tail.receipt(lease.microbatch, lease.attempt);
  tail.sync();
  tail.restart();
  for (int i = 0; i < 3; ++i) tail.sync();
  swarm.at(0, 0).receipt(lease.microbatch, lease.attempt);
  swarm.at(0, 0).sync();
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 1u);
  EXPECT_EQ(tail.record().fresh_total(), 0u);
}

TEST(Confirmation, AMicrobatchKeepsABoundedNumberOfWords) {
  core::BoundaryWords words;
  core::Receipt receipt;
  receipt.accumulated = true;
  for (MinerIndex miner = 0; miner < 1000; ++miner) {
    receipt.miner = miner;
    receipt.downstream = 2000;
    EXPECT_TRUE(words.add(receipt, 2).empty());
  }
  EXPECT_LT(encode(words).size(), 16u * 128);
}

}  // namespace
}  // namespace tessera::test
