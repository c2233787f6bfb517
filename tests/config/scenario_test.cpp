// What a scenario's YAML may say under `sim`, and what is said about what it may not.
#include "tessera/config/scenario.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/config_files.h"

namespace tessera::config {
namespace {

using testing::HasSubstr;

TEST(ScenarioConfig, DefaultsAreAccepted) {
  const auto scenario = load_scenario("", {});
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  EXPECT_EQ(scenario->sim.seed, 1u);
  EXPECT_TRUE(scenario->sim.faults.empty());
}

TEST(ScenarioConfig, OverridesReachBothParts) {
  const auto scenario = load_scenario(
      "", {"training.steps=7", "sim.participants=9", "sim.speeds=[1, 2.5]", "sim.speeds=3"});
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  EXPECT_EQ(scenario->run.spec.training.steps, 7u);
  EXPECT_EQ(scenario->run.spec.pipeline.miners_per_stage, 9u);
  EXPECT_EQ(scenario->sim.speeds, std::vector<double>{3});
}

TEST(ScenarioConfig, FaultsAreRead) {
  const auto scenario =
      load_scenario("", {"sim.faults=[{kind: kill, every_s: 29, for_s: 5, stage: 1}, {kind: "
                         "partition, at_s: 60, for_s: 10, share: 0.5}]"});
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  ASSERT_EQ(scenario->sim.faults.size(), 2u);
  EXPECT_EQ(scenario->sim.faults[0].kind, FaultKind::kKill);
  EXPECT_EQ(scenario->sim.faults[0].every_s, 29);
  EXPECT_EQ(scenario->sim.faults[0].stage, 1u);
  EXPECT_EQ(scenario->sim.faults[1].share, 0.5);
  EXPECT_STREQ(name_of(scenario->sim.faults[1].kind), "partition");
}

TEST(ScenarioConfig, WhatIsWrongIsNamed) {
  const std::pair<std::string, std::string> wrong[] = {
      {"sim.faults=[{kind: sink, at_s: 1}]", "expected one of kill, freeze"},
      {"sim.faults=[{at_s: 1}]", "kind: missing"},
      {"sim.faults=[{kind: kill}]", "either at_s (once) or every_s"},
      {"sim.faults=[{kind: kill, at_s: 1, every_s: 2}]", "either at_s (once) or every_s"},
      {"sim.faults=[{kind: kill, at_s: 1, until_s: 2}]", "go with every_s"},
      {"sim.faults=[{kind: freeze, at_s: 1}]", "a freeze needs a duration"},
      {"sim.faults=[{kind: kill, at_s: 1, when: 2}]", "when: unknown"},
      {"sim.faults=[{kind: kill, at_s: 1, at_s: 2}]", "given twice"},
      {"sim.faults=[{kind: kill, at_s: -1}]", "at_s: must be 0 to"},
      {"sim.faults=[{kind: kill, at_s: 1, share: 2}]", "share: must be above 0"},
      {"sim.faults=[{kind: kill, at_s: 1, stage: 3}]", "stage 3 of a run with 3 stages"},
      {"sim.faults=7", "expected a list of faults"},
      {"sim.speeds=[]", "sim.speeds: empty"},
      {"sim.speeds=[0]", "each must be 0.001 to 1000"},
      {"sim.loss=1", "sim.loss: 1 is not allowed"},
      {"sim.duration_s=0", "sim.duration_s: 0 is not allowed"},
      {"sim.durations_s=5", "did you mean"},
  };
  for (const auto& [override, message] : wrong) {
    EXPECT_THAT(message_of_result(load_scenario("", {override})), HasSubstr(message)) << override;
  }
}

TEST(ScenarioConfig, ACrashNeedsTheJournal) {
  EXPECT_THAT(message_of_result(load_scenario(
                  "", {"sim.keep_journal=false",
                       "sim.faults=[{kind: orchestrator_crash, at_s: 1, for_s: 1}]"})),
              HasSubstr("needs its journal"));
}

}  // namespace
}  // namespace tessera::config
