#include "tessera/core/clasp_samples.h"

#include <gtest/gtest.h>

#include "ledger_story.h"

namespace tessera::test {
namespace {

using core::ClaspSample;
using core::ClaspSamples;

struct Reading {
  std::vector<ClaspSample> samples;
  core::ClaspSampleCounts counts;
};

Reading read(const LedgerStory& story) {
  ClaspSamples reader;
  Reading reading;
  for (const core::LedgerEntry& entry : story.entries) {
    for (ClaspSample& sample : reader.read(entry)) reading.samples.push_back(std::move(sample));
  }
  reading.counts = reader.counts();
  return reading;
}

TEST(ClaspSamples, AreTheRandomPathwaysOnly) {
  LedgerStory story(3);
  story.report(story.receipts(7, {0, 2, 4}, 4.5f));
  story.pass(2000);
  story.report(story.receipts(8, {1, 3, 5}, 4.25f));
  EXPECT_TRUE(read(story).samples.empty());  // not published yet
  story.publish(8, {1, 3, 5});
  const Reading reading = read(story);
  ASSERT_EQ(reading.samples.size(), 1u);
  EXPECT_EQ(reading.samples[0].microbatch, 8u);
  EXPECT_EQ(reading.samples[0].pathway, (std::vector<MinerIndex>{1, 3, 5}));
  EXPECT_EQ(reading.samples[0].loss, 4.25);
  EXPECT_EQ(reading.samples[0].time_s, 1'000'002);
  EXPECT_EQ(reading.counts.published, 1u);
  EXPECT_EQ(reading.counts.rerouted, 0u);
}

TEST(ClaspSamples, RepairedAndBrokenPathwaysAreLeftOut) {
  LedgerStory story(3);
  auto repaired = story.receipts(1, {0, 2, 4});
  repaired[0].repaired = repaired[1].repaired = true;
  story.report(repaired);
  auto missing = story.receipts(2, {0, 2, 4});
  missing.erase(missing.begin());
  story.report(missing);
  auto broken = story.receipts(3, {0, 2, 4});
  broken[0].downstream = 3;
  story.report(broken);
  story.report(story.receipts(4, {0, 2, 4}));
  story.report(story.receipts(4, {1, 3, 5}));  // two whole pathways: nobody can say which made the loss
  story.report(story.receipts(5, {0, 2, 4}, 4, 1));  // another attempt than the published one
  for (MicrobatchId id = 1; id <= 5; ++id) story.publish(id, {0, 2, 4});
  const Reading reading = read(story);
  EXPECT_TRUE(reading.samples.empty());
  EXPECT_EQ(reading.counts.published, 5u);
  EXPECT_EQ(reading.counts.repaired, 1u);
  EXPECT_EQ(reading.counts.incomplete, 4u);
}

TEST(ClaspSamples, ThePathwayThatHappenedCounts) {
  LedgerStory story(2);
  story.report(story.receipts(1, {0, 3}));
  story.publish(1, {0, 2});
  const Reading reading = read(story);
  ASSERT_EQ(reading.samples.size(), 1u);
  EXPECT_EQ(reading.samples[0].pathway, (std::vector<MinerIndex>{0, 3}));
  EXPECT_EQ(reading.counts.rerouted, 1u);
}

TEST(ClaspSamples, ReceiptsOfLaterReportsCountOnceAndThoseAheadOfAGapNotAtAll) {
  LedgerStory story(1);
  core::Receipt receipt = story.receipts(1, {0})[0];
  receipt.sequence = 2;
  story.add(core::ReceiptsArrived{0, {receipt}});  // the first is missing: it will be repeated
  story.publish(1, {0});
  EXPECT_EQ(read(story).counts.incomplete, 1u);
  receipt.sequence = 1;
  story.add(core::ReceiptsArrived{0, {receipt}});
  story.add(core::ReceiptsArrived{0, {receipt}});
  story.publish(1, {0});
  EXPECT_EQ(read(story).samples.size(), 1u);
}

TEST(ClaspSamples, OneMinersWordOnARepairKeepsNoSampleOut) {
  LedgerStory story(3);
  for (MicrobatchId id = 1; id <= 20; ++id) {
    auto receipts = story.receipts(id, {0, 2, 4});
    receipts[1].repaired = true;
    story.report(receipts);
    story.publish(id, {0, 2, 4});
  }
  const Reading reading = read(story);
  EXPECT_EQ(reading.samples.size(), 20u);
  EXPECT_EQ(reading.counts.repaired, 0u);
}

TEST(ClaspSamples, NeitherASecondReceiptNorAStrangersKeepsASampleOut) {
  LedgerStory story(3);
  for (MicrobatchId id = 1; id <= 20; ++id) {
    story.report(story.receipts(id, {0, 9, 4}, 4)[1]);  // nobody names it
    const auto receipts = story.receipts(id, {0, 2, 4}, 4.5f);
    story.report(receipts);
    story.report(receipts[1]);
    core::Receipt other = receipts[2];
    other.loss = 1;  // its first word binds
    other.upstream = 9;
    story.report(other);
    story.report(story.receipts(id, {9, 2, 4})[0]);
    story.publish(id, {0, 2, 4});
  }
  const Reading reading = read(story);
  ASSERT_EQ(reading.samples.size(), 20u);
  for (const ClaspSample& sample : reading.samples) {
    EXPECT_EQ(sample.pathway, (std::vector<MinerIndex>{0, 2, 4}));
    EXPECT_EQ(sample.loss, 4.5);
  }
}

TEST(ClaspSamples, WhoKeepsItsSamplesOutIsShown) {
  LedgerStory story(2);
  for (MicrobatchId id = 1; id <= 40; ++id) {
    const MinerIndex head = id % 2;
    const MinerIndex tail = 2 + id % 4 / 2;
    auto receipts = story.receipts(id, {head, tail});
    if (tail == 3) receipts[1].upstream = 7;
    story.report(receipts);
    story.publish(id, {head, tail});
  }
  ClaspSamples reader;
  size_t samples = 0;
  for (const core::LedgerEntry& entry : story.entries) samples += reader.read(entry).size();
  EXPECT_EQ(samples, 20u);
  EXPECT_EQ(reader.shares().at(3).published, 20u);
  EXPECT_EQ(reader.shares().at(3).left_out, 20u);
  EXPECT_EQ(reader.shares().at(2).left_out, 0u);
  for (const MinerIndex head : {0u, 1u}) EXPECT_EQ(reader.shares().at(head).left_out, 10u) << head;
}

// Receipts for work that is not there yet, or never will be, drive out those of the miner that signs them.
TEST(ClaspSamples, AFloodOfReceiptsDrivesOutNobodyElses) {
  LedgerStory story(2);
  for (MicrobatchId id = 1; id <= 20; ++id) story.report(story.receipts(id, {0, 2}));
  core::Receipt beyond = story.receipts(uint64_t{1} << 60, {0, 9})[1];
  for (int i = 0; i < 500; ++i, ++beyond.microbatch) story.report(beyond);
  for (MicrobatchId id = 0; id < 2000; ++id) story.report(story.receipts(100 + id, {0, 9})[1]);
  core::RandomLeasesPublished published;
  for (MicrobatchId id = 1; id <= 20; ++id) published.leases.push_back({id, 0, {0, 2}});
  story.add(published);
  ClaspSamples reader(200);
  size_t samples = 0;
  for (const core::LedgerEntry& entry : story.entries) samples += reader.read(entry).size();
  EXPECT_EQ(samples, 20u);
}

TEST(ClaspSamples, AResumedRunLeasesTheSameNumbersAgain) {
  LedgerStory story(2);
  story.report(story.receipts(1, {0, 2}, 9));
  story.add(core::RunResumed{});
  story.report(story.receipts(1, {1, 3}, 4));
  story.publish(1, {1, 3});
  const Reading reading = read(story);
  ASSERT_EQ(reading.samples.size(), 1u);
  EXPECT_EQ(reading.samples[0].loss, 4);
}

}  // namespace
}  // namespace tessera::test
