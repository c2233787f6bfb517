// Seeds of whole runs under every fault at once. A seed that failed is pinned here with what it
// showed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/simulated_swarm.h"
#include "support/small_run.h"

namespace tessera::test {
namespace {

core::RunSpec chaos_spec(uint64_t seed) {
  Prng random(mix64(seed));
  core::RunSpec spec = small_spec(1 + static_cast<uint32_t>(random.below(3)),
                                  1 + static_cast<uint32_t>(random.below(4)));
  spec.training.steps = 20 + random.below(20);
  spec.training.microbatches_per_step = 1 + static_cast<uint32_t>(random.below(3));
  spec.training.synchronous = random.below(4) == 0;
  spec.merge.min_microbatches = 3 + static_cast<uint32_t>(random.below(10));
  spec.merge.max_staleness = 1 + static_cast<uint32_t>(random.below(4));
  spec.merge.quorum = random.below(2) == 0 ? 0.5 : 1.0;
  spec.checkpoint.every_microbatches = random.below(2) == 0 ? 0 : 25;
  spec.timeouts.lease_ms = 400;
  spec.timeouts.merge_phase_ms = 200;
  spec.timeouts.peer_ms = 60;
  return spec;
}

struct Totals {
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint64_t shards_recomputed = 0;
  uint64_t reissued = 0;
  uint64_t double_counted = 0;
};

void expect_finish(uint64_t seed, Totals* totals) {
  SimulatedSwarm swarm(chaos_spec(seed), seed);
  swarm.run(1500, 60000);
  ASSERT_EQ(swarm.problem_at_end(), "") << "seed " << seed;
  EXPECT_GT(swarm.faults, 10u) << "seed " << seed;
  const core::OrchestratorState& state = swarm.world.state();
  totals->reissued += state.reissued;
  totals->double_counted += state.double_counted;
  for (const core::StageRecord& stage : state.stages) {
    totals->merges += stage.merges;
    totals->merges_aborted += stage.merges_aborted;
    totals->shards_recomputed += stage.shards_recomputed;
  }
}

TEST(Simulation, ARunWithoutFaultsLosesAndRepeatsNothing) {
  core::RunSpec spec = small_spec(3, 2);
  SimulatedSwarm swarm(spec, 1);
  swarm.run(0, 20000);
  ASSERT_EQ(swarm.problem_at_end(), "");
  const core::OrchestratorState& state = swarm.world.state();
  EXPECT_EQ(state.reissued, 0u);
  EXPECT_EQ(state.double_counted, 0u);
  EXPECT_EQ(state.leased, spec.total_microbatches());
  for (const core::StageRecord& stage : state.stages) {
    EXPECT_EQ(stage.merges_aborted, 0u);
    EXPECT_EQ(stage.shards_recomputed, 0u);
  }
}

TEST(Simulation, OneSeedIsOneRun) {
  uint64_t done[2];
  for (uint64_t& result : done) {
    SimulatedSwarm swarm(chaos_spec(5), 5);
    swarm.run(1500, 1500);
    result = swarm.world.state().done * 1000000 + swarm.world.events.size();
  }
  EXPECT_EQ(done[0], done[1]);
}

class Chaos : public testing::TestWithParam<uint64_t> {};

TEST_P(Chaos, TheRunFinishesWithNothingLost) {
  Totals totals;
  for (uint64_t seed = GetParam() * 50; seed < (GetParam() + 1) * 50; ++seed) {
    expect_finish(seed, &totals);
    if (testing::Test::HasFatalFailure()) return;
  }
  // The chaos is none unless all of this happens.
  EXPECT_GT(totals.merges, 200u);
  EXPECT_GT(totals.merges_aborted, 0u);
  EXPECT_GT(totals.shards_recomputed, 0u);
  EXPECT_GT(totals.reissued, 50u);
  EXPECT_GT(totals.double_counted, 10u);
}

// Every replica of a stage died while its newest state was unpublished and only one past merge was
// to be kept.
TEST(ChaosPinned, AStageWhoseReplicasAllDieIsBuiltAgainFromItsMerges) {
  Totals totals;
  expect_finish(3786, &totals);
}

// The same with operators that assign and drain miners, change settings and cut the stages anew meanwhile.
class ChaosWithOrders : public testing::TestWithParam<uint64_t> {};

TEST_P(ChaosWithOrders, TheRunFinishesWithNothingLost) {
  uint64_t orders = 0, moves = 0, restaged = 0;
  for (uint64_t seed = GetParam() * 25; seed < (GetParam() + 1) * 25; ++seed) {
    core::RunSpec spec = chaos_spec(seed);
    spec.model.layers *= 2;
    spec.pipeline.stage_layers.clear();
    ASSERT_TRUE(core::validate(&spec).ok());
    SimulatedSwarm swarm(spec, seed);
    swarm.operators = true;
    swarm.run(1500, 60000);
    ASSERT_EQ(swarm.problem_at_end(), "") << "seed " << seed;
    orders += swarm.orders;
    moves += swarm.world.state().moves;
    restaged += swarm.world.said("layers from now on");
  }
  EXPECT_GT(orders, 100u);
  EXPECT_GT(moves, 10u);
  EXPECT_GT(restaged, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChaosWithOrders, testing::Range<uint64_t>(0, 2),
                         [](const auto& batch) { return fmt::format("from{}", batch.param * 25); });

INSTANTIATE_TEST_SUITE_P(Seeds, Chaos, testing::Range<uint64_t>(0, 5),
                         [](const auto& batch) { return fmt::format("from{}", batch.param * 50); });

}  // namespace
}  // namespace tessera::test
