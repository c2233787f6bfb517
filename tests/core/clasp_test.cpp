#include "tessera/core/clasp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/core/clasp_simulation.h"

namespace tessera::core {
namespace {

using testing::HasSubstr;

std::vector<ClaspMiner> analysed(const ClaspScenario& scenario, ClaspOptions options = {}) {
  ClaspSimulation simulation(scenario);
  Clasp clasp(options);
  for (uint64_t i = 0; i < scenario.samples; ++i) {
    const ClaspSimulatedSample sample = simulation.next();
    EXPECT_EQ(clasp.add(sample.pathway, sample.loss, sample.time), "");
  }
  return clasp.result();
}

const ClaspMiner& find(const std::vector<ClaspMiner>& miners, const std::string& id) {
  for (const ClaspMiner& miner : miners) {
    if (miner.id == id) return miner;
  }
  ADD_FAILURE() << id;
  return miners.front();
}

struct Tally {
  uint32_t found = 0;     // flags of bad miners
  uint32_t false_runs = 0;  // runs with a flag of an honest one
  uint32_t covered = 0;   // intervals of honest miners, in stages without a bad one, that contain 0
  uint32_t intervals = 0;
};

Tally tally(ClaspScenario scenario, uint32_t runs) {
  Tally tally;
  for (uint32_t run = 0; run < runs; ++run) {
    scenario.seed = run + 1;
    const ClaspSimulation simulation(scenario);
    bool any_false = false;
    for (const ClaspMiner& miner : analysed(scenario)) {
      const bool bad = scenario.harm > 0 && simulation.is_bad(miner.stage, miner.id);
      if (miner.flagged) (bad ? tally.found++ : any_false = true);
      if (miner.stage != 0 || !miner.effect) continue;
      tally.intervals++;
      tally.covered += *miner.ci_low <= 0 && *miner.ci_high >= 0;
    }
    tally.false_runs += any_false;
  }
  return tally;
}

// The known simulation: 5 x 5 miners, loss N(4.5, 0.2), one with 10 % more of both.
TEST(Clasp, TheKnownSimulationIsFlaggedAtOnceAndItsNeighboursLookBetter) {
  ClaspScenario scenario;
  scenario.samples = 500;
  for (scenario.seed = 1; scenario.seed <= 10; ++scenario.seed) {
    for (const ClaspMiner& miner : analysed(scenario)) {
      EXPECT_EQ(miner.flagged, miner.id == "s2m3") << miner.id << " with seed " << scenario.seed;
      if (miner.stage != 2) continue;
      EXPECT_EQ(miner.z > 0, miner.id == "s2m3") << miner.id << " with seed " << scenario.seed;
      EXPECT_EQ(*miner.effect > 0, miner.id == "s2m3") << miner.id << " with seed " << scenario.seed;
    }
  }
}

TEST(Clasp, EstimatesTheHarm) {
  ClaspScenario scenario;
  scenario.samples = 50000;
  const auto miners = analysed(scenario);
  // 0.45 more than the others is 0.36 more than the stage's average, which it is a fifth of.
  EXPECT_NEAR(*find(miners, "s2m3").effect, 0.36, 0.01);
  EXPECT_NEAR(*find(miners, "s2m0").effect, -0.09, 0.01);
  EXPECT_NEAR(*find(miners, "s0m0").effect, 0, 0.01);
}

TEST(Clasp, EffectsOfAStageAddUpToNothing) {
  ClaspScenario scenario;
  scenario.samples = 777;
  std::vector<double> sums(5, 0.0);
  for (const ClaspMiner& miner : analysed(scenario)) {
    sums[miner.stage] += *miner.effect * static_cast<double>(miner.samples);
  }
  for (const double sum : sums) EXPECT_NEAR(sum, 0, 1e-6);
}

TEST(Clasp, OnePercentIsFoundInAFallingLossWithAnyNoise) {
  for (const ClaspNoise noise : {ClaspNoise::kNormal, ClaspNoise::kStudent, ClaspNoise::kLognormal, ClaspNoise::kSpikes}) {
    ClaspScenario scenario;
    scenario.samples = 5000;
    scenario.loss_fall = 4;
    scenario.noise = noise;
    scenario.harm = 0.01;
    const Tally found = tally(scenario, 4);
    EXPECT_EQ(found.found, 4u) << static_cast<int>(noise);
    EXPECT_LE(found.false_runs, 1u) << static_cast<int>(noise);
  }
}

TEST(Clasp, HonestSwarmsAreNotAccusedAndIntervalsHold) {
  for (const ClaspNoise noise : {ClaspNoise::kNormal, ClaspNoise::kStudent, ClaspNoise::kLognormal, ClaspNoise::kSpikes}) {
    for (const uint64_t samples : {60u, 500u, 6000u}) {
      ClaspScenario scenario;
      scenario.samples = samples;
      scenario.loss_fall = 4;
      scenario.noise = noise;
      scenario.harm = 0;
      const Tally honest = tally(scenario, samples > 1000 ? 4 : 20);
      EXPECT_LE(honest.false_runs, 1u) << static_cast<int>(noise) << ' ' << samples;
      EXPECT_GE(honest.covered, honest.intervals * 17 / 20) << static_cast<int>(noise) << ' ' << samples;
    }
  }
}

TEST(Clasp, TwoBadMinersAreFoundInOneStageAndInTwo) {
  for (const auto& second : {std::pair(2u, 0u), std::pair(4u, 1u)}) {
    ClaspScenario scenario;
    scenario.samples = 5000;
    scenario.harm = 0.02;
    scenario.bad = {{2, 3}, second};
    EXPECT_EQ(tally(scenario, 3).found, 6u);
  }
}

TEST(Clasp, AbsurdLossesMoveNothing) {
  ClaspScenario scenario;
  scenario.samples = 2000;
  ClaspSimulation simulation(scenario);
  Clasp plain({});
  Clasp disturbed({});
  for (uint64_t i = 0; i < scenario.samples; ++i) {
    const ClaspSimulatedSample sample = simulation.next();
    plain.add(sample.pathway, sample.loss, sample.time);
    disturbed.add(sample.pathway, i % 500 == 7 ? Clasp::kMaxLoss : sample.loss, sample.time);
  }
  const auto expected = plain.result();
  const auto miners = disturbed.result();
  for (size_t i = 0; i < miners.size(); ++i) {
    EXPECT_NEAR(*miners[i].effect, *expected[i].effect, 0.02);
    EXPECT_EQ(miners[i].flagged, miners[i].id == "s2m3");
  }
}

TEST(Clasp, ALossWithoutVarianceAccusesNobody) {
  ClaspScenario scenario;
  scenario.deviation = 0;
  scenario.harm = 0;
  scenario.samples = 1000;
  for (const ClaspMiner& miner : analysed(scenario)) {
    EXPECT_FALSE(miner.flagged);
    EXPECT_EQ(miner.z, 0);
    EXPECT_NEAR(*miner.effect, 0, 1e-9);
    EXPECT_TRUE(std::isfinite(*miner.ci_low) && std::isfinite(*miner.ci_high));
  }
  scenario.harm = 0.01;  // without noise any harm is certain
  const auto certain = analysed(scenario);
  EXPECT_TRUE(find(certain, "s2m3").flagged);
  EXPECT_FALSE(find(certain, "s2m0").flagged);
}

TEST(Clasp, WhatSamplesCannotTellIsSaidToBeUnknown) {
  Clasp clasp({});
  EXPECT_TRUE(clasp.result().empty());
  EXPECT_EQ(clasp.add({"alone", "a"}, 4.5, 0), "");
  for (const ClaspMiner& miner : clasp.result()) {
    EXPECT_FALSE(miner.flagged);
    EXPECT_FALSE(miner.effect.has_value());
  }
  // b of stage 1 and y of stage 2 always come together: nobody can say who of them harms.
  Clasp pairs({});
  Prng prng(5);
  for (int i = 0; i < 2000; ++i) {
    const bool together = prng.uniform() < 0.3;
    const std::string second = together ? "b" : (prng.uniform() < 0.5 ? "a" : "c");
    const std::string third = together ? "y" : (prng.uniform() < 0.5 ? "x" : "z");
    const std::string last = prng.uniform() < 0.5 ? "p" : "q";
    EXPECT_EQ(pairs.add({"alone", second, third, last},
                        4 + 0.1 * prng.uniform() + (together ? 0.5 : 0) + (last == "q" ? 0.2 : 0), i), "");
  }
  const auto miners = pairs.result();
  EXPECT_EQ(find(miners, "alone").reason, ClaspReason::kAlone);
  EXPECT_EQ(find(miners, "b").reason, ClaspReason::kInseparable);
  EXPECT_EQ(find(miners, "y").reason, ClaspReason::kInseparable);
  EXPECT_FALSE(find(miners, "b").flagged);
  EXPECT_TRUE(find(miners, "q").flagged);
  EXPECT_FALSE(find(miners, "p").flagged);
}

TEST(Clasp, AFewSamplesOfAnUnluckyNewcomerAreNoProof) {
  ClaspScenario scenario;
  scenario.samples = 3000;
  ClaspSimulation simulation(scenario);
  Clasp clasp({});
  for (uint64_t i = 0; i < scenario.samples; ++i) {
    ClaspSimulatedSample sample = simulation.next();
    if (i % 1000 == 500) {
      sample.pathway[4] = "newcomer";
      sample.loss += 1;
    }
    clasp.add(sample.pathway, sample.loss, sample.time);
  }
  const ClaspMiner newcomer = find(clasp.result(), "newcomer");
  EXPECT_EQ(newcomer.reason, ClaspReason::kFewSamples);
  EXPECT_FALSE(newcomer.flagged);
}

TEST(Clasp, MinEffectKeepsSmallHarmUnflagged) {
  ClaspScenario scenario;
  scenario.samples = 20000;
  scenario.harm = 0.02;
  EXPECT_TRUE(find(analysed(scenario), "s2m3").flagged);
  EXPECT_FALSE(find(analysed(scenario, {.min_effect = 0.2}), "s2m3").flagged);
}

TEST(Clasp, BadSamplesAreRefusedWithWhatToDoAndChangeNothing) {
  Clasp clasp({});
  EXPECT_THAT(clasp.add({}, 4, 0), HasSubstr("give one miner for each stage"));
  EXPECT_EQ(clasp.add({"a", "b"}, 4, 0), "");
  EXPECT_THAT(clasp.add({"a"}, 4, 0), HasSubstr("of 1 miners where those before have 2"));
  EXPECT_THAT(clasp.add({"a", ""}, 4, 0), HasSubstr("stage 1"));
  EXPECT_THAT(clasp.add({"a", "b"}, std::numeric_limits<double>::infinity(), 0), HasSubstr("loss"));
  EXPECT_THAT(clasp.add({"a", "b"}, 1e9, 0), HasSubstr("loss"));
  EXPECT_THAT(clasp.add({"a", "b"}, 4, NAN), HasSubstr("time"));
  EXPECT_EQ(clasp.samples(), 1u);
  for (uint32_t i = 0; i < Clasp::kMaxMiners; ++i) clasp.add({std::to_string(i), "b"}, 4, i);
  EXPECT_THAT(clasp.add({"one too many", "b"}, 4, 0), HasSubstr("more than 2048 miners"));
}

}  // namespace
}  // namespace tessera::core
