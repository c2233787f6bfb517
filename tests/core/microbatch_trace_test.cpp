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
  story.add(core::UploadCommitted{3, {.target = 1, .object = {}, .snapshot_step = 0}});  // before the gradient's step
  story.add(core::PairingsPublished{1, 1, {}});
  story.add(core::UploadCommitted{3, {.target = 2, .object = {}, .snapshot_step = 1}});  // of a merge that is aborted
  story.add(core::UploadCommitted{3, {.target = 3, .object = {}, .snapshot_step = 2}});
  story.add(core::PairingsPublished{1, 3, {}});
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
