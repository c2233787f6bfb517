// Verdicts, and the publication of secrets whose time is over.
#include <gtest/gtest.h>

#include <set>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

template <class T>
std::vector<T> events_of(const OrchestratorWorld& world) {
  std::vector<T> found;
  for (const core::Event& event : world.events) {
    if (const T* match = std::get_if<T>(&event)) found.push_back(*match);
  }
  return found;
}

TEST(Verdicts, OfFraudAreCountedAndOthersAreNot) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  core::Verdict verdict{.miner = swarm.at(1, 0).index(), .stage = 1, .epoch = 0, .kind = core::VerdictKind::kAuditedWork,
                        .passed = true, .reason = "fits", .evidence = {}};
  swarm.world.step(core::VerdictRecorded{verdict});
  EXPECT_EQ(swarm.at(1, 0).record().failed_verdicts, 0u);
  verdict.passed = false;
  swarm.world.step(core::VerdictRecorded{verdict});
  EXPECT_EQ(swarm.at(1, 0).record().failed_verdicts, 1u);
  EXPECT_TRUE(swarm.world.said("audited work failed: fits"));
  for (const auto kind : {core::VerdictKind::kInfrastructure, core::VerdictKind::kMergeUpload}) {
    verdict.kind = kind;
    swarm.world.step(core::VerdictRecorded{verdict});
  }
  EXPECT_EQ(swarm.at(1, 0).record().failed_verdicts, 1u);
  verdict.kind = core::VerdictKind::kMergeShard;
  verdict.miner = 77;  // never registered: passed over
  swarm.world.step(core::VerdictRecorded{verdict});
}

TEST(Publication, RandomPathwaysFollowTheHeadStagesMerge) {
  core::RunSpec spec = small_spec(2, 2);
  spec.pipeline.random_pathway_share = 0.5;
  ScriptedSwarm swarm(spec);
  swarm.start();
  std::set<MicrobatchId> random;
  while (swarm.world.stage(0).epoch == 0) {
    const core::Lease lease = swarm.train_one(0);
    if (swarm.world.state().open.at(lease.microbatch).random_pathway) random.insert(lease.microbatch);
    if (swarm.world.stage(0).merge) {
      EXPECT_TRUE(events_of<core::RandomLeasesPublished>(swarm.world).empty());
    }
    swarm.train_one(1);
    swarm.sync_all();
    ASSERT_LT(swarm.world.state().next_microbatch, 500u);
  }
  const auto published = events_of<core::RandomLeasesPublished>(swarm.world);
  ASSERT_EQ(published.size(), 1u);
  std::set<MicrobatchId> named;
  for (const core::RandomLease& lease : published[0].leases) {
    EXPECT_EQ(lease.pathway.size(), 2u);
    named.insert(lease.microbatch);
  }
  EXPECT_FALSE(named.empty());
  for (const MicrobatchId id : random) EXPECT_EQ(named.count(id), 1u) << id;
  for (const core::RandomLease& later : swarm.world.state().unpublished) EXPECT_EQ(named.count(later.microbatch), 0u);
}

TEST(Publication, PairingsFollowTheirMerge) {
  core::RunSpec spec = small_spec(1, 4);
  ScriptedSwarm swarm(spec);
  swarm.start();
  while (swarm.world.stage(0).epoch == 0) {
    EXPECT_TRUE(events_of<core::PairingsPublished>(swarm.world).empty());
    swarm.train(1);
    ASSERT_LT(swarm.world.state().next_microbatch, 500u);
  }
  const auto published = events_of<core::PairingsPublished>(swarm.world);
  ASSERT_FALSE(published.empty());
  EXPECT_EQ(published[0].stage, 0u);
  EXPECT_EQ(published[0].target, 1u);
  std::set<std::pair<MinerIndex, MinerIndex>> pairs;
  uint64_t next = 0;
  for (const core::PublishedPairing& pairing : published[0].pairings) {
    EXPECT_EQ(pairing.first_block, next);
    next += pairing.block_count;
    pairs.insert({pairing.owner_a, pairing.owner_b});
  }
  EXPECT_EQ(pairs.size(), published[0].pairings.size());
  // And every commitment to a shard of it can be read from now on.
  std::set<uint64_t> unsealed;
  for (const auto& secret : events_of<core::SecretUnsealed>(swarm.world)) {
    if (secret.kind == core::ShardCommitted::kName) unsealed.insert(secret.id);
  }
  for (const auto& commit : events_of<core::ShardCommitted>(swarm.world)) {
    EXPECT_EQ(unsealed.count(*core::seal_id(core::Event(commit))), 1u) << commit.miner;
  }
}

}  // namespace
}  // namespace tessera::test
