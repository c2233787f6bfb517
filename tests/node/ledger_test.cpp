// What real nodes leave in the ledger is what its readers expect: the hashes of both sides of a boundary are equal, random
// pathways are published, every gradient is paid.
#include <gtest/gtest.h>

#include "support/node_swarm.h"
#include "tessera/core/clasp_samples.h"
#include "tessera/core/microbatch_trace.h"
#include "tessera/core/rewards.h"

namespace tessera::test {
namespace {

std::vector<core::LedgerEntry> entries_of(MemoryJournal& journal) {
  std::vector<core::LedgerEntry> entries;
  EXPECT_TRUE(journal.replay(0, [&](const ports::JournalRecord& record) {
    if (record.kind == ports::kSnapshotKind) return ok_status();
    std::optional<core::Event> event = core::decode_event(record.kind, record.body);
    EXPECT_TRUE(event.has_value()) << record.kind;
    if (event) entries.push_back({record.sequence, record.unix_ms, *std::move(event)});
    return ok_status();
  }).ok());
  return entries;
}

TEST(Ledger, ARunOfRealNodesIsPaidSampledAndTraced) {
  core::RunSpec spec = node_spec(3, 2, 16);
  spec.pipeline.random_pathway_share = 0.5;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait(
      [](const core::OrchestratorState& state) { return state.phase == core::RunPhase::kFinished; }));
  ASSERT_TRUE(swarm.orchestrator_result().ok());
  const core::OrchestratorState state = swarm.journal->state();
  const std::vector<core::LedgerEntry> entries = entries_of(*swarm.journal);
  const bool undisturbed = state.reissued == 0 && state.repaired == 0;

  const core::VoidedEpochs none;
  core::Rewards rewards({}, entries.back().time, none);
  core::ClaspSamples samples;
  core::MicrobatchTrace trace(5, true);
  size_t sampled = 0;
  bool repaired = false;
  for (const core::LedgerEntry& entry : entries) {
    rewards.read(entry);
    sampled += samples.read(entry).size();
    trace.read(entry);
    if (const auto* arrived = std::get_if<core::ReceiptsArrived>(&entry.event)) {
      for (const core::Receipt& receipt : arrived->receipts) repaired = repaired || receipt.repaired;
    }
  }
  rewards.finish();
  std::map<MinerIndex, uint64_t> full;
  for (const auto& [key, epoch] : rewards.epochs()) {
    EXPECT_EQ(epoch.contradicted, 0u) << "miner " << key.miner << " of stage " << key.stage;
    full[key.miner] += epoch.full;
  }
  for (const core::MinerRecord& miner : state.miners) {
    EXPECT_LE(full[miner.index], miner.counted);
    if (undisturbed && !repaired) {
      EXPECT_EQ(full[miner.index], miner.counted);
    }
  }
  const core::ClaspSampleCounts& counts = samples.counts();
  EXPECT_GT(counts.published, 0u);
  EXPECT_EQ(counts.published, sampled + counts.repaired + counts.incomplete);
  if (undisturbed && !repaired) {
    EXPECT_EQ(counts.incomplete, 0u);
  }
  EXPECT_TRUE(state.unpublished.empty());

  const core::TracedMicrobatch traced = trace.finish();
  EXPECT_TRUE(traced.complete);
  EXPECT_TRUE(traced.loss.has_value());
  EXPECT_GE(traced.hops.size(), 3u);
  EXPECT_GE(traced.leases.size(), 1u);
  EXPECT_EQ(traced.merges.size(), 3u);
  for (const core::TracedHop& hop : traced.hops) EXPECT_FALSE(hop.node.is_zero());
}

}  // namespace
}  // namespace tessera::test
