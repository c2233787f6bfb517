#include "tessera/core/microbatch_trace.h"

#include <gtest/gtest.h>

#include "ledger_story.h"
#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

using core::MicrobatchTrace;
using core::TracedMicrobatch;

TracedMicrobatch trace(const std::vector<core::LedgerEntry>& entries, MicrobatchId microbatch, bool replays = false) {
  MicrobatchTrace reader(microbatch, replays);
  for (const core::LedgerEntry& entry : entries) reader.read(entry);
  return reader.finish();
}

TEST(Trace, ShowsEveryHopWithWhatBecameOfIt) {
  LedgerStory story(3);
  story.report(story.receipts(4, {0, 2, 4}));
  story.report(story.receipts(5, {1, 3, 4}, 4.5f));
  story.publish(5, {1, 3, 5});
  story.upload(3, 1, 0);  // before the gradient's step
  story.merge(1, 1, {2, 3});
  story.upload(3, 2, 1);  // of a merge that is aborted
  story.upload(3, 3, 2);
  story.merge(1, 3, {2, 3});
  story.judge(3, 1, 0, core::VerdictKind::kAuditedWork, false);
  story.judge(2, 1, 0, core::VerdictKind::kAuditedWork, false);
  const TracedMicrobatch traced = trace(story.entries, 5);
  EXPECT_TRUE(traced.complete);
  EXPECT_EQ(traced.stages, 3u);
  EXPECT_EQ(traced.loss, 4.5);
  ASSERT_EQ(traced.hops.size(), 3u);
  for (StageIndex s = 0; s < 3; ++s) {
    EXPECT_EQ(traced.hops[s].receipt.stage, s);
    EXPECT_EQ(traced.hops[s].outcome, "full");
    EXPECT_EQ(traced.hops[s].voided, s == 1);
  }
  ASSERT_EQ(traced.leases.size(), 1u);
  EXPECT_TRUE(traced.leases[0].random_pathway);
  EXPECT_EQ(traced.leases[0].pathway, (std::vector<MinerIndex>{1, 3, 5}));
  ASSERT_EQ(traced.merges.size(), 1u);
  EXPECT_EQ(traced.merges[0].stage, 1u);
  EXPECT_EQ(traced.merges[0].target, 3u);
  ASSERT_EQ(traced.verdicts.size(), 1u);
  EXPECT_EQ(traced.verdicts[0].verdict.miner, 3u);
}

// What the gate keeps out, and what comes after the grace, is in no manifest; a resume begins again with the same targets.
TEST(Trace, NamesTheMergeWhoseManifestHasTheUpload) {
  LedgerStory story(1, 3);
  story.report(story.receipts(7, {1}));
  story.upload(1, 1, 1);
  story.merge(0, 1, {0, 2});
  EXPECT_TRUE(trace(story.entries, 7).merges.empty());
  story.upload(1, 2, 1);
  story.merge(0, 2, {0, 2});
  LedgerStory resumed = story;
  story.upload(1, 3, 1);
  story.merge(0, 3, {1});  // alone, it owns its shard with itself
  const TracedMicrobatch traced = trace(story.entries, 7);
  ASSERT_EQ(traced.merges.size(), 1u);
  EXPECT_EQ(traced.merges[0].target, 3u);

  resumed.add(core::RunResumed{});
  resumed.merge(0, 2, {1, 2});  // with another upload than the one of before
  EXPECT_TRUE(trace(resumed.entries, 7).merges.empty());
  resumed.upload(1, 1, 1);
  resumed.merge(0, 1, {1, 2});
  EXPECT_EQ(trace(resumed.entries, 7).merges.at(0).target, 1u);
}

TEST(Trace, PutsAHopIntoTheEpochThatTheLedgerKnows) {
  LedgerStory story(2);
  story.hold(2, 3);
  story.report(story.receipts(7, {0, 2}, 4, 0, 99));
  story.report(story.receipts(7, {0, 2}, 4, 0, 3)[1]);
  story.judge(2, 1, 3, core::VerdictKind::kMergeShard, false);
  const TracedMicrobatch traced = trace(story.entries, 7);
  ASSERT_EQ(traced.hops.size(), 3u);
  EXPECT_EQ(traced.hops[1].epoch, 3u);
  EXPECT_EQ(traced.hops[1].outcome, "full");
  EXPECT_TRUE(traced.hops[1].voided);
  EXPECT_EQ(traced.verdicts.size(), 1u);
  EXPECT_NE(traced.hops[2].outcome, "full");  // signed again
}

TEST(Trace, OfAnUnknownMicrobatchIsEmpty) {
  LedgerStory story(2);
  story.report(story.receipts(4, {0, 2}));
  const TracedMicrobatch traced = trace(story.entries, 5);
  EXPECT_FALSE(traced.complete);
  EXPECT_TRUE(traced.hops.empty() && traced.leases.empty() && traced.merges.empty());
}

// With the key the run is replayed: every lease is known, also those that came to nothing.
TEST(Trace, AReplayKnowsTheLeasesOfAllAttempts) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  head.sync();
  ASSERT_FALSE(head.leases.empty());
  const core::Lease first = head.leases.front();
  swarm.world.pass(2000);  // its lease expires
  head.leases.clear();
  std::vector<core::Lease> again;
  for (int tries = 0; tries < 5 && again.empty(); ++tries) {
    swarm.sync_all();
    for (const auto& miner : swarm.miners) {
      for (const core::Lease& lease : miner->leases) {
        if (lease.microbatch == first.microbatch && lease.attempt == 1) again.push_back(lease);
      }
    }
  }
  ASSERT_FALSE(again.empty());
  std::vector<core::LedgerEntry> entries;
  for (size_t i = 0; i < swarm.world.events.size(); ++i) {
    entries.push_back({i + 1, swarm.world.event_times[i], swarm.world.events[i]});
  }
  const TracedMicrobatch traced = trace(entries, first.microbatch, true);
  EXPECT_TRUE(traced.leases_known);
  ASSERT_EQ(traced.leases.size(), 2u);
  EXPECT_EQ(traced.leases[0].attempt, 0u);
  EXPECT_EQ(traced.leases[0].head, head.index());
  EXPECT_EQ(traced.leases[0].pathway, first.pathway);
  EXPECT_EQ(traced.leases[1].attempt, 1u);
  EXPECT_EQ(traced.leases[1].pathway, again[0].pathway);
}

}  // namespace
}  // namespace tessera::test
