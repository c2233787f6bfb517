// Seeds of whole runs under every fault at once: the daemons' own code, a simulated world. For a
// while everything fails now and then, then nothing does, and the run must finish with nothing
// lost. A seed that failed is pinned here with what it showed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/small_run.h"
#include "tessera/base/log.h"
#include "tessera/base/prng.h"
#include "tessera/sim/simulation.h"

namespace tessera::test {
namespace {

using config::Fault;
using config::FaultKind;

constexpr double kChaosSeconds = 6;

core::RunSpec chaos_spec(uint64_t seed) {
  Prng random(mix64(seed));
  core::RunSpec spec = small_spec(1 + static_cast<uint32_t>(random.below(3)),
                                  1 + static_cast<uint32_t>(random.below(4)));
  spec.training.steps = 100 + random.below(100);
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

Fault again_and_again(FaultKind kind, double every_s, double for_s) {
  Fault fault;
  fault.kind = kind;
  fault.every_s = every_s;
  fault.for_s = for_s;
  return fault;
}

config::Scenario chaos_scenario(uint64_t seed) {
  config::Scenario scenario;
  scenario.run.spec = chaos_spec(seed);
  config::SimSpec& sim = scenario.sim;
  sim.seed = seed;
  sim.duration_s = 120;
  sim.start_spread_s = 0.01;
  sim.restart_s = 0.05;
  sim.forward_ms_per_layer = 1.5;
  sim.backward_ms_per_layer = 1.5;
  sim.compute_jitter = 0.9;
  sim.optimizer_ms = 1;
  sim.latency_ms = 1;
  sim.latency_jitter_ms = 4;
  sim.commit_ms = 1;
  sim.loss = 0.02;
  sim.duplication = 0.02;
  sim.reordering = 0.03;
  sim.reordering_ms = 500;
  sim.job_failures = 0.02;
  sim.lies = 0.15;
  sim.lost_uploads = 0.05;
  sim.faults_until_s = kChaosSeconds;
  sim.faults = {again_and_again(FaultKind::kKill, 0.5, 0.3),
                again_and_again(FaultKind::kFreeze, 0.4, 0.4),
                again_and_again(FaultKind::kPartition, 0.8, 0.2),
                again_and_again(FaultKind::kOrchestratorCrash, 0.8, 0.15),
                again_and_again(FaultKind::kJoin, 1.5, 0),
                again_and_again(FaultKind::kDrain, 1, 0.2),
                again_and_again(FaultKind::kPause, 0.8, 0.05),
                again_and_again(FaultKind::kCheckpoint, 0.8, 0)};
  return scenario;
}

sim::Result simulate(const config::Scenario& scenario) {
  spdlog::set_level(spdlog::level::off);
  auto simulation = sim::Simulation::create(scenario, "");
  TESSERA_CHECK(simulation.ok());
  const std::atomic<bool> stop{false};
  const Status status = (*simulation)->run(stop, [](const sim::Progress&) {});
  EXPECT_TRUE(status.ok()) << status;
  StatusOr<sim::Result> result = (*simulation)->result();
  TESSERA_CHECK(result.ok());
  return *std::move(result);
}

struct Totals {
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint64_t shards_recomputed = 0;
  uint64_t reissued = 0;
  uint64_t gradients_refused = 0;
  uint64_t orders_obeyed = 0;
  uint64_t moves = 0;
};

void expect_finish(uint64_t seed, const config::Scenario& scenario, Totals* totals) {
  const sim::Result result = simulate(scenario);
  ASSERT_EQ(result.problem, "") << "seed " << seed;
  ASSERT_EQ(result.phase, "finished") << "seed " << seed << ": " << result.to_text();
  EXPECT_EQ(result.microbatches_lost, 0u) << "seed " << seed;
  EXPECT_EQ(result.microbatches_double_counted, 0u) << "seed " << seed;
  EXPECT_TRUE(result.replicas_identical) << "seed " << seed;
  EXPECT_EQ(result.falsely_voided, 0u) << "seed " << seed;
  EXPECT_GT(result.faults, 10u) << "seed " << seed;
  totals->merges += result.merges;
  totals->merges_aborted += result.merges_aborted;
  totals->shards_recomputed += result.shards_recomputed;
  totals->reissued += result.leases_reissued;
  totals->gradients_refused += result.gradients_refused;
  totals->orders_obeyed += result.orders_obeyed;
  totals->moves += result.moves;
}

TEST(Simulation, ARunWithoutFaultsLosesAndRepeatsNothing) {
  config::Scenario scenario = chaos_scenario(1);
  scenario.run.spec = small_spec(3, 2);
  scenario.sim.faults_until_s = 1e-6;
  scenario.sim.faults.clear();
  const sim::Result result = simulate(scenario);
  ASSERT_EQ(result.problem, "");
  EXPECT_EQ(result.phase, "finished");
  EXPECT_EQ(result.microbatches_done, scenario.run.spec.total_microbatches());
  EXPECT_EQ(result.leases_reissued, 0u);
  EXPECT_EQ(result.gradients_refused, 0u);
  EXPECT_EQ(result.redone_share, 0);
  EXPECT_EQ(result.redone_dead_share, 0);
  EXPECT_EQ(result.merges_aborted, 0u);
  EXPECT_LE(result.shards_recomputed, 3u);  // a stage's last merge may have one participant only, and its shard one owner
}

TEST(Simulation, OneSeedIsOneTrace) {
  const sim::Result first = simulate(chaos_scenario(5));
  const sim::Result second = simulate(chaos_scenario(5));
  EXPECT_GT(first.trace_lines, 1000u);
  EXPECT_EQ(first.trace_sha256, second.trace_sha256);
  EXPECT_EQ(first.to_json(), second.to_json());
  EXPECT_NE(first.trace_sha256, simulate(chaos_scenario(6)).trace_sha256);
}

class Chaos : public testing::TestWithParam<uint64_t> {};

TEST_P(Chaos, TheRunFinishesWithNothingLost) {
  Totals totals;
  for (uint64_t seed = GetParam() * 50; seed < (GetParam() + 1) * 50; ++seed) {
    expect_finish(seed, chaos_scenario(seed), &totals);
    if (testing::Test::HasFatalFailure()) return;
  }
  // The chaos is none unless all of this happens.
  EXPECT_GT(totals.merges, 200u);
  EXPECT_GT(totals.merges_aborted, 1u);
  EXPECT_GT(totals.shards_recomputed, 1u);
  EXPECT_GT(totals.reissued, 50u);
  EXPECT_GT(totals.gradients_refused, 10u);
}

// The same with operators that assign and drain miners, change settings and cut the stages anew meanwhile.
class ChaosWithOrders : public testing::TestWithParam<uint64_t> {};

TEST_P(ChaosWithOrders, TheRunFinishesWithNothingLost) {
  Totals totals;
  for (uint64_t seed = GetParam() * 25; seed < (GetParam() + 1) * 25; ++seed) {
    config::Scenario scenario = chaos_scenario(seed);
    scenario.run.spec.model.layers *= 2;
    scenario.run.spec.pipeline.stage_layers.clear();
    ASSERT_TRUE(core::validate(&scenario.run.spec).ok());
    scenario.sim.faults.push_back(again_and_again(FaultKind::kOrder, 0.15, 0));
    expect_finish(seed, scenario, &totals);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(totals.orders_obeyed, 100u);
  EXPECT_GT(totals.moves, 10u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChaosWithOrders, testing::Range<uint64_t>(0, 2),
                         [](const auto& batch) { return fmt::format("from{}", batch.param * 25); });

INSTANTIATE_TEST_SUITE_P(Seeds, Chaos, testing::Range<uint64_t>(0, 5),
                         [](const auto& batch) { return fmt::format("from{}", batch.param * 50); });

}  // namespace
}  // namespace tessera::test
