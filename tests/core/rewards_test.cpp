#include "tessera/core/rewards.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ledger_story.h"

namespace tessera::test {
namespace {

using core::EpochOfMiner;
using core::RewardOutcome;
using core::RewardRules;
using core::VerdictKind;

constexpr TimeMs kHour = 3'600'000;

struct Reading {
  std::map<MinerIndex, double> scores;
  std::map<EpochOfMiner, core::RewardEpoch> epochs;
  std::vector<core::RewardedReceipt> receipts;

  // Of the miner's only receipt.
  RewardOutcome outcome(MinerIndex miner) const {
    for (const auto& receipt : receipts) {
      if (receipt.miner == miner) return receipt.outcome;
    }
    ADD_FAILURE() << "no receipt of miner " << miner;
    return RewardOutcome::kUnconfirmed;
  }
};

Reading read(const LedgerStory& story, RewardRules rules = {}) {
  core::VoidedEpochs voided;
  for (const core::LedgerEntry& entry : story.entries) voided.read(entry);
  core::Rewards rewards(rules, story.now(), voided);
  Reading reading;
  const auto keep = [&](std::vector<core::RewardedReceipt> settled) {
    reading.receipts.insert(reading.receipts.end(), settled.begin(), settled.end());
  };
  for (const core::LedgerEntry& entry : story.entries) keep(rewards.read(entry));
  keep(rewards.finish());
  reading.scores = rewards.scores();
  reading.epochs = rewards.epochs();
  double explained = 0;
  double total = 0;
  for (const auto& receipt : reading.receipts) explained += receipt.score;
  for (const auto& [miner, score] : reading.scores) total += score;
  EXPECT_NEAR(explained, total, 1e-9);  // every number is that of its receipts
  return reading;
}

TEST(Rewards, AreLinearInConfirmedMicrobatches) {
  LedgerStory story(3);
  for (MicrobatchId id = 0; id < 10; ++id) story.report(story.receipts(id, {0, id < 4 ? 2u : 3u, 4}));
  const Reading reading = read(story);
  EXPECT_EQ(reading.scores.at(0), 10);
  EXPECT_EQ(reading.scores.at(2), 4);
  EXPECT_EQ(reading.scores.at(3), 6);
  EXPECT_EQ(reading.scores.at(4), 10);
  EXPECT_EQ(reading.epochs.at({2, 1, 0}).full, 4u);
}

TEST(Rewards, ASecondGradientOfAStageIsPaidAsAForward) {
  LedgerStory story(2);
  story.report(story.receipts(1, {0, 2}));
  story.report(story.receipts(1, {1, 3}, 4, 1));  // the next attempt: these gradients do not count
  auto only_input_gradient = story.receipts(2, {1, 3}, 4, 1);
  only_input_gradient[0].accumulated = only_input_gradient[1].accumulated = false;
  story.report(only_input_gradient);
  const Reading reading = read(story, {.forward_share = 0.25});
  EXPECT_EQ(reading.scores.at(0), 1);
  EXPECT_EQ(reading.scores.at(2), 1);
  EXPECT_EQ(reading.scores.at(1), 0.5);
  EXPECT_EQ(reading.scores.at(3), 0.5);
}

TEST(Rewards, AMinerWhoseNeighbourDiedIsPaidItsForward) {
  LedgerStory story(3);
  auto receipts = story.receipts(1, {0, 2, 4});
  receipts.pop_back();  // the tail died before its receipt came
  story.report(receipts);
  const Reading reading = read(story, {.forward_share = 0.25});
  EXPECT_EQ(reading.outcome(0), RewardOutcome::kFull);
  EXPECT_EQ(reading.outcome(2), RewardOutcome::kForwardOnly);
  EXPECT_EQ(reading.scores.at(2), 0.25);
}

TEST(Rewards, AReceiptThatNobodyConfirmsIsWorthNothing) {
  LedgerStory story(3);
  story.report(story.receipts(1, {0, 2, 4})[1]);
  story.report(story.receipts(2, {1, 3, 5})[0]);
  story.report(story.receipts(3, {1, 3, 5})[2]);
  const Reading reading = read(story);
  for (const MinerIndex miner : {2u, 1u, 5u}) EXPECT_EQ(reading.outcome(miner), RewardOutcome::kUnconfirmed) << miner;
  for (const auto& [miner, score] : reading.scores) EXPECT_EQ(score, 0) << miner;
}

TEST(Rewards, ReceiptsThatContradictEachOtherAreWorthNothingOnBothSides) {
  LedgerStory story(3);
  auto receipts = story.receipts(1, {0, 2, 4});
  receipts[2].gradient_out_hash = digest_of("another");
  story.report(receipts);
  const Reading reading = read(story);
  EXPECT_EQ(reading.outcome(0), RewardOutcome::kFull);
  EXPECT_EQ(reading.outcome(2), RewardOutcome::kContradicted);
  EXPECT_EQ(reading.outcome(4), RewardOutcome::kContradicted);
}

TEST(Rewards, RepairedWorkIsPaidWhenBothSidesSaySo) {
  LedgerStory story(3);
  auto receipts = story.receipts(1, {0, 2, 4});
  receipts[1].input_hash = digest_of("of the head before the repair");
  receipts[0].repaired = receipts[1].repaired = true;
  story.report(receipts);
  auto one_sided = story.receipts(2, {1, 3, 5});
  one_sided[1].input_hash = digest_of("of nobody");
  one_sided[1].repaired = true;
  story.report(one_sided);
  const Reading reading = read(story);
  EXPECT_EQ(reading.outcome(0), RewardOutcome::kFull);
  EXPECT_EQ(reading.outcome(2), RewardOutcome::kFull);
  EXPECT_EQ(reading.outcome(3), RewardOutcome::kContradicted);
}

TEST(Rewards, AFraudVerdictVoidsItsEpochAndNoOther) {
  LedgerStory story(2);
  for (Epoch epoch = 0; epoch < 3; ++epoch) {
    for (const MinerIndex miner : {0u, 2u}) story.hold(miner, epoch);
    for (MicrobatchId i = 0; i < 5; ++i) story.report(story.receipts(epoch * 5 + i, {0, 2}, 4, 0, epoch));
  }
  story.judge(2, 1, 1, VerdictKind::kAuditedWork, false);
  story.judge(2, 1, 0, VerdictKind::kAuditedWork, true);
  story.judge(0, 0, 0, VerdictKind::kInfrastructure, false);  // never held against it
  story.judge(0, 0, 1, VerdictKind::kMergeUpload, false);
  const Reading reading = read(story);
  EXPECT_EQ(reading.scores.at(0), 15);
  EXPECT_EQ(reading.scores.at(2), 10);
  EXPECT_TRUE(reading.epochs.at({2, 1, 1}).voided);
  EXPECT_EQ(reading.epochs.at({2, 1, 1}).lost_score, 5);
}

// A receipt for work that was not done: nobody names the miner of it.
core::Receipt stray_of(const LedgerStory& story, MicrobatchId id, MinerIndex miner, uint32_t attempt = 0) {
  core::Receipt stray = story.receipts(id, {0, miner, 4}, 4, attempt)[1];
  stray.input_hash = stray.gradient_out_hash = digest_of("of nothing");
  return stray;
}

TEST(Rewards, AReceiptThatIsSignedAgainIsPaidOnce) {
  for (const bool repaired : {false, true}) {
    LedgerStory story(2);
    auto receipts = story.receipts(1, {0, 2});
    receipts[0].repaired = receipts[1].repaired = repaired;
    for (int times = 0; times < 3; ++times) story.report(receipts[1]);
    story.report(receipts[0]);
    story.report(receipts[1]);
    const Reading reading = read(story);
    EXPECT_EQ(reading.scores.at(0), 1);
    EXPECT_EQ(reading.scores.at(2), 1);
  }
}

// It can neither take a gradient of (stage, microbatch) for itself nor settle an attempt before the honest have reported.
TEST(Rewards, AStrayReceiptTakesNobodysPay) {
  LedgerStory story(3);
  for (MicrobatchId id = 1; id <= 11; ++id) story.report(stray_of(story, id, 9));
  story.report(stray_of(story, 1, 9, 5));  // of an attempt that was never issued
  for (MicrobatchId id = 1; id <= 11; ++id) {
    const auto receipts = story.receipts(id, {0, 2, 4});
    story.report(receipts[0]);  // heads report more often
    story.report(receipts[2]);
    story.report(receipts[1]);
    story.pass(1000);
  }
  const Reading reading = read(story);
  for (const core::RewardedReceipt& receipt : reading.receipts) {
    EXPECT_EQ(receipt.outcome, receipt.miner == 9 ? RewardOutcome::kUnconfirmed : RewardOutcome::kFull) << receipt.miner;
  }
  for (const MinerIndex miner : {0u, 2u, 4u}) EXPECT_EQ(reading.scores.at(miner), 11) << miner;
  EXPECT_EQ(reading.scores.at(9), 0);
}

// In work that really was repaired, too: to say so is free.
TEST(Rewards, AStrayReceiptOfRepairedWorkIsNotConfirmedByTheRepaired) {
  LedgerStory story(3);
  core::Receipt stray = stray_of(story, 1, 9);
  stray.repaired = true;
  story.report(stray);
  auto receipts = story.receipts(1, {0, 2, 4});
  for (core::Receipt& receipt : receipts) receipt.repaired = true;
  story.report(receipts);
  const Reading reading = read(story);
  EXPECT_EQ(reading.outcome(9), RewardOutcome::kUnconfirmed);
  for (const MinerIndex miner : {0u, 2u, 4u}) EXPECT_EQ(reading.outcome(miner), RewardOutcome::kFull) << miner;
}

TEST(Rewards, TheLedgerSaysInWhichEpochWorkWasDoneAndNotTheReceipt) {
  LedgerStory story(2);
  story.hold(0, 1);
  story.hold(2, 1);
  story.report(story.receipts(1, {0, 2}, 4, 0, 99));
  story.hold(2, 2);
  story.report(story.receipts(2, {0, 2}, 4, 0, 1));
  story.judge(2, 1, 1, VerdictKind::kMergeShard, false);
  const Reading reading = read(story);
  EXPECT_EQ(reading.scores.at(0), 2);
  EXPECT_EQ(reading.scores.at(2), 1);
  EXPECT_TRUE(reading.epochs.at({2, 1, 1}).voided);
  EXPECT_EQ(reading.epochs.at({2, 1, 2}).full, 1u);
  EXPECT_EQ(reading.epochs.size(), 3u);  // none is made up by a receipt
}

TEST(Rewards, AgeDecidesTheWeight) {
  LedgerStory story(1);
  for (MicrobatchId id = 0; id < 12; ++id) {
    story.report(story.receipts(id, {0}));
    story.pass(kHour);
  }
  EXPECT_EQ(read(story, {.window_h = 10}).scores.at(0), 10);  // 1 to 10 hours old; those of 11 and 12 are not
  EXPECT_EQ(read(story, {.window_h = 10}).epochs.at({0, 0, 0}).aged_out, 2u);
  double expected = 0;
  for (int age = 1; age <= 12; ++age) expected += std::pow(0.5, age / 3.0);
  EXPECT_NEAR(read(story, {.half_life_h = 3}).scores.at(0), expected, 1e-9);
}

TEST(Rewards, AResumedRunPaysWorkThatIsDoneAgain) {
  LedgerStory story(1);
  for (MicrobatchId id = 0; id < 4; ++id) story.report(story.receipts(id, {0}));
  core::RunSpec spec = small_spec(1, 2);
  spec.training.steps = 1000;
  core::RunResumed resumed;
  resumed.run_spec = encode(spec);
  resumed.next_microbatch = 3;
  resumed.open = {{.microbatch = 1, .attempt = 0, .counted_stages = 0}};
  story.add(resumed);
  story.report(story.receipts(1, {1}, 4, 1));
  story.report(story.receipts(3, {1}));
  story.report(story.receipts(2, {1}, 4, 1));  // complete in the checkpoint
  const Reading reading = read(story, {.forward_share = 0});
  EXPECT_EQ(reading.scores.at(0), 4);
  EXPECT_EQ(reading.scores.at(1), 2);
}

TEST(Rewards, WhatWasNeverLeasedIsNotRead) {
  LedgerStory story(1);
  story.report(story.receipts(uint64_t{1} << 60, {0}));
  core::Receipt stray = story.receipts(1, {0})[0];
  stray.stage = 63;
  story.report(stray);
  EXPECT_TRUE(read(story).receipts.empty());
}

TEST(Rewards, AnUnfinishedMicrobatchStopsNothing) {
  LedgerStory story(2);
  story.report(story.receipts(0, {0, 2})[0]);  // its other stage never comes
  for (MicrobatchId id = 1; id <= 100; ++id) {
    story.report(story.receipts(id, {0, 2}));
    story.pass(60'000);
  }
  const Reading reading = read(story);
  EXPECT_EQ(reading.epochs.at({0, 0, 0}).full, 100u);
  EXPECT_EQ(reading.epochs.at({0, 0, 0}).unconfirmed, 1u);
}

}  // namespace
}  // namespace tessera::test
