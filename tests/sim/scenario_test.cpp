// Every scenario that is shipped, in a short form: it loads, runs, keeps its promises and comes to
// rest.
#include "tessera/config/scenario.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tessera/base/log.h"
#include "tessera/core/stage_layout.h"
#include "tessera/sim/simulation.h"

namespace tessera::test {
namespace {

config::Scenario scenario_of(const std::string& name, const std::vector<std::string>& overrides) {
  const auto scenario =
      config::load_scenario(std::string(TESSERA_CONFIGS) + "/sim/" + name + ".yaml", overrides);
  EXPECT_TRUE(scenario.ok()) << scenario.status();
  return scenario.value_or(config::Scenario{});
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

// What holds of every run, whatever befell it.
void expect_sound(const sim::Result& result) {
  EXPECT_EQ(result.problem, "");
  EXPECT_EQ(result.microbatches_lost, 0u);
  EXPECT_EQ(result.microbatches_double_counted, 0u);
  EXPECT_EQ(result.replica_mismatches, 0u);
  EXPECT_TRUE(result.replicas_identical);
  EXPECT_TRUE(result.state_is_replay);
  EXPECT_GT(result.microbatches_done, 0u);
  EXPECT_LE(result.tokens, result.ideal_tokens * 1.02);
}

// Throughput of the last `share` of the simulated time, of the ideal then.
double late_share(const sim::Result& result, double share) {
  double tokens = 0;
  double ideal = 0;
  for (const sim::Sample& sample : result.samples) {
    if (sample.at_s < result.simulated_s * (1 - share)) continue;
    tokens += sample.tokens_per_s;
    ideal += sample.ideal_tokens_per_s;
  }
  return ideal > 0 ? tokens / ideal : 0;
}

TEST(Scenario, EveryShippedOneLoads) {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(TESSERA_CONFIGS) + "/sim")) {
    names.push_back(entry.path().stem().string());
    const auto scenario = config::load_scenario(entry.path().string(), {});
    EXPECT_TRUE(scenario.ok()) << scenario.status();
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"churn", "heterogeneous", "merge",
                                             "orchestrator_crash", "partition",
                                             "stage_nearly_emptied", "ten_thousand", "thousand"}));
}

TEST(Scenario, OneSeedIsOneTraceAndOneResult) {
  const config::Scenario scenario =
      scenario_of("churn", {"sim.duration_s=90", "sim.faults_until_s=60"});
  const sim::Result first = simulate(scenario);
  expect_sound(first);
  EXPECT_EQ(first.to_json(), simulate(scenario).to_json());
  EXPECT_EQ(first.trace_sha256.size(), 64u);
  config::Scenario other = scenario;
  other.sim.seed = 2;
  EXPECT_NE(first.trace_sha256, simulate(other).trace_sha256);
}

TEST(Scenario, HeterogeneousMinersAreAllUsed) {
  const sim::Result result = simulate(scenario_of("heterogeneous", {"sim.duration_s=120"}));
  expect_sound(result);
  EXPECT_LT(result.redone_share, 0.01);
  EXPECT_GT(result.throughput_share, 0.85);
}

TEST(Scenario, ChurnLosesNothingAndComesToRest) {
  const sim::Result result =
      simulate(scenario_of("churn", {"sim.duration_s=300", "sim.faults_until_s=240"}));
  expect_sound(result);
  EXPECT_GT(result.faults, 3u);
  EXPECT_GT(result.throughput_share, 0.5);
  EXPECT_GT(late_share(result, 0.1), 0.7);
}

TEST(Scenario, AStageThatIsNearlyEmptiedComesBack) {
  const sim::Result result = simulate(scenario_of(
      "stage_nearly_emptied",
      {"sim.duration_s=480", "sim.forward_ms_per_layer=160", "sim.backward_ms_per_layer=320"}));
  expect_sound(result);
  EXPECT_EQ(result.faults, 2u);
  EXPECT_GT(late_share(result, 0.1), 0.7);
}

TEST(Scenario, APartitionHeals) {
  const sim::Result result = simulate(
      scenario_of("partition", {"sim.forward_ms_per_layer=160", "sim.backward_ms_per_layer=320"}));
  expect_sound(result);
  EXPECT_EQ(result.faults, 3u);
  EXPECT_GT(late_share(result, 0.05), 0.7);
}

TEST(Scenario, AnOrchestratorThatCrashesLosesNothing) {
  const sim::Result result =
      simulate(scenario_of("orchestrator_crash", {"sim.duration_s=180", "sim.faults_until_s=150"}));
  expect_sound(result);
  EXPECT_GT(result.faults, 3u);
  EXPECT_GT(late_share(result, 0.1), 0.7);
}

TEST(Scenario, AMergeSurvivesDeadParticipants) {
  const sim::Result result =
      simulate(scenario_of("merge", {"sim.participants=12", "sim.dead_share=0.5"}));
  expect_sound(result);
  EXPECT_GT(result.merges, 1u);
  EXPECT_EQ(result.shards, 66u);
  EXPECT_EQ(result.shards_lost_without_rescue, 15u);  // 6 of 12 are dead: 6 * 5 / 2 pairs
  EXPECT_EQ(result.shards_lost, 0u);
  EXPECT_EQ(result.falsely_accused, 0u);
  EXPECT_TRUE(result.accused.empty());  // to be dead is no fault
}

TEST(Scenario, CheatersInMergesAreNamedAndNobodyElse) {
  const sim::Result result = simulate(scenario_of(
      "merge", {"sim.participants=12", "sim.cheaters=[noise, flip, scale, lazy, unavailable]", "sim.duration_s=90"}));
  expect_sound(result);
  EXPECT_GT(result.merges, 1u);
  EXPECT_EQ(result.accused, (std::vector<uint32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(result.falsely_accused, 0u);
}

// What it stores can be read by everyone and is the same for all: nothing but the sample can tell.
TEST(Scenario, APairThatForgesItsShardIsFoundByTheSample) {
  const sim::Result result = simulate(
      scenario_of("merge", {"sim.participants=6", "sim.cheaters=[forge, forge]", "merge.sample_share=1", "sim.duration_s=40"}));
  expect_sound(result);
  EXPECT_EQ(result.accused, (std::vector<uint32_t>{1, 2}));
}

// Nobody can apply what the two agreed on: the first replica that says so has it made again.
TEST(Scenario, APairThatCommitsWhatNobodyHasIsNamedAndStopsNothing) {
  const sim::Result result = simulate(
      scenario_of("merge", {"sim.participants=6", "sim.cheaters=[pair, pair]", "merge.sample_share=0", "sim.duration_s=60"}));
  expect_sound(result);
  EXPECT_EQ(result.accused, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(result.falsely_accused, 0u);
  EXPECT_GT(result.merges, 5u);
}

// What the two say of one upload on their shard is checked before it decides on the upload.
TEST(Scenario, APairThatSlandersAnUploadIsNamedAndNotTheOneItIsAbout) {
  const sim::Result result = simulate(
      scenario_of("merge", {"sim.participants=6", "sim.cheaters=[slander, slander]", "merge.sample_share=0", "sim.duration_s=40"}));
  expect_sound(result);
  EXPECT_EQ(result.accused, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(result.falsely_accused, 0u);
}

// The orchestrator makes a lone participant's shard itself: false ones are named, and it goes on.
TEST(Scenario, ALoneParticipantThatLiesIsNotLeftBehind) {
  const sim::Result result = simulate(
      scenario_of("merge", {"sim.participants=1", "pipeline.miners_per_stage=1", "sim.lies=0.5", "sim.duration_s=60"}));
  expect_sound(result);
  EXPECT_GT(result.merges, 5u);
  EXPECT_EQ(result.merges_aborted, 0u);
}

// Three planes where there was one, and whatever else befalls the miners, replicas have the same moments.
TEST(Scenario, MergesOfMomentsStandChurnAndMoveThreeTimesTheBytes) {
  const std::string average = "merge.optimizer_moments=average";
  const sim::Result churn =
      simulate(scenario_of("churn", {"sim.duration_s=300", "sim.faults_until_s=240", average}));
  expect_sound(churn);
  EXPECT_GT(churn.faults, 3u);
  EXPECT_GT(churn.merges, 5u);
  const std::vector<std::string> quiet = {"sim.participants=4", "sim.duration_s=40", "merge.sample_share=0"};
  std::vector<std::string> with_moments = quiet;
  with_moments.push_back(average);
  const sim::Result local = simulate(scenario_of("merge", quiet)), moments = simulate(scenario_of("merge", with_moments));
  expect_sound(moments);
  EXPECT_GT(moments.merges, 2u);
  EXPECT_NEAR(static_cast<double>(moments.bytes_up_per_miner) / static_cast<double>(local.bytes_up_per_miner), 3, 0.3);
  EXPECT_NEAR(static_cast<double>(moments.bytes_down_per_miner) / static_cast<double>(local.bytes_down_per_miner), 3, 0.3);
}

// Uploads that nobody can read cost a try each; the run goes on, also where there is only one participant.
TEST(Scenario, ALoneParticipantWhoseUploadsAreLostMergesAgain) {
  const sim::Result result = simulate(
      scenario_of("merge", {"sim.participants=1", "pipeline.miners_per_stage=1", "sim.lost_uploads=0.3", "sim.duration_s=120"}));
  expect_sound(result);
  EXPECT_GT(result.merges_aborted, 0u);
  EXPECT_GT(result.merges, 5u);
}

// Four copies of the stage on the wire, whatever the number of participants; names and manifests are a little more.
TEST(Scenario, AMergeMovesTheSameBytesPerMinerHoweverManyThereAre) {
  for (const uint32_t participants : {4u, 16u}) {
    const config::Scenario scenario =
        scenario_of("merge", {fmt::format("sim.participants={}", participants), "merge.block_values=1024", "sim.duration_s=40",
                              "merge.sample_share=0"});
    const sim::Result result = simulate(scenario);
    expect_sound(result);
    const double wire = 1.02 * static_cast<double>(core::stage_value_count(scenario.run.spec, 0));
    EXPECT_LT(static_cast<double>(result.bytes_up_per_miner), 1.2 * wire * (1 + 2.0 / participants));
    EXPECT_LT(static_cast<double>(result.bytes_down_per_miner), 1.2 * wire * 3);
    EXPECT_GT(static_cast<double>(result.bytes_down_per_miner), 0.5 * wire);
  }
}

TEST(Scenario, AThousandMinersTakeTheSameWayInSmall) {
  const sim::Result result = simulate(scenario_of(
      "thousand",
      {"sim.duration_s=600", "sim.faults_until_s=450", "model.layers=3", "pipeline.stages=3",
       "pipeline.miners_per_stage=20", "merge.min_microbatches=4"}));
  expect_sound(result);
  EXPECT_GT(result.faults, 10u);
  EXPECT_GT(result.merges, 0u);
}

TEST(Scenario, TenThousandMinersTakeTheSameWayInSmall) {
  const sim::Result result = simulate(scenario_of(
      "ten_thousand",
      {"sim.duration_s=2400", "sim.faults_until_s=2000", "model.layers=4", "pipeline.stages=4",
       "pipeline.miners_per_stage=12", "sim.check=true", "sim.keep_journal=true",
       "merge.min_microbatches=4", "sim.faults=[{kind: kill, every_s: 100, for_s: 120}]"}));
  expect_sound(result);
  EXPECT_GT(result.faults, 10u);
  EXPECT_GT(result.merges, 0u);
}

// Links that are busy for most of the time. Whoever has much to send must not blame the others for the wait: each of them
// left out would hand on more.
TEST(Scenario, BusyLinksDoNotMakeMinersBlameEachOther) {
  const std::vector<std::string> small = {
      "sim.duration_s=600", "sim.faults_until_s=600", "model.layers=4", "pipeline.stages=4",
      "pipeline.miners_per_stage=12", "pipeline.max_in_flight=24", "merge.enabled=false"};
  const sim::Result with_faults = simulate(scenario_of("thousand", small));
  expect_sound(with_faults);
  EXPECT_GT(with_faults.faults, 30u);
  EXPECT_LT(with_faults.redone_share, 0.1);
  EXPECT_GT(late_share(with_faults, 0.5), 0.6);
  std::vector<std::string> slow = small;
  slow.insert(slow.end(), {"sim.faults=[]", "sim.upload_mbit=12"});
  const sim::Result slow_links = simulate(scenario_of("thousand", slow));
  expect_sound(slow_links);
  EXPECT_EQ(slow_links.leases_reissued, 0u);
  EXPECT_LT(slow_links.redone_share, 0.1);
  EXPECT_GT(late_share(slow_links, 0.5), 0.5);
}

// A machine with too many processes: everybody stands still for a moment again and again. What is left of the time is
// used as well as all of it would be.
TEST(Scenario, StandingStillCostsOnlyItsTime) {
  const std::vector<std::string> swift = {
      "sim.duration_s=12", "sim.faults_until_s=12", "sim.tick_ms=5", "sim.forward_ms_per_layer=1",
      "sim.backward_ms_per_layer=1", "sim.latency_ms=1", "sim.latency_jitter_ms=1", "timeouts.lease_ms=3000",
      "timeouts.miner_lost_ms=300", "timeouts.peer_ms=500", "timeouts.sync_ms=5", "merge.enabled=false"};
  const auto share_with = [&](const std::string& faults) {
    std::vector<std::string> overrides = swift;
    overrides.push_back("sim.faults=" + faults);
    const sim::Result result = simulate(scenario_of("churn", overrides));
    expect_sound(result);
    EXPECT_LT(result.redone_share, 0.03);
    return result.throughput_share;
  };
  const double undisturbed = share_with("[]");
  for (const char* faults : {"[{kind: freeze, every_s: 0.1, for_s: 0.08, share: 1}]",
                             "[{kind: freeze, every_s: 1, for_s: 0.6, share: 1}]",
                             "[{kind: freeze, every_s: 4, for_s: 2, share: 1}]"}) {
    EXPECT_GT(share_with(faults), 0.95 * undisturbed) << faults;
  }
}

TEST(Scenario, StoppingGivesWhatThereIs) {
  auto simulation = sim::Simulation::create(scenario_of("churn", {}), "");
  ASSERT_TRUE(simulation.ok());
  std::atomic<bool> stop{false};
  ASSERT_TRUE(
      (*simulation)
          ->run(stop, [&](const sim::Progress& progress) { stop = progress.simulated_s > 30; })
          .ok());
  const auto result = (*simulation)->result();
  ASSERT_TRUE(result.ok());
  EXPECT_GT(result->simulated_s, 30);
  EXPECT_LT(result->simulated_s, 120);
  expect_sound(*result);
}

TEST(Scenario, TooManyEventsAreAnError) {
  auto simulation = sim::Simulation::create(scenario_of("churn", {"sim.max_events=5000"}), "");
  ASSERT_TRUE(simulation.ok());
  const std::atomic<bool> stop{false};
  const Status status = (*simulation)->run(stop, [](const sim::Progress&) {});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(message_of(status).find("sim.max_events"), std::string::npos);
}

}  // namespace
}  // namespace tessera::test
