// Verdicts, and the publication of secrets whose time is over.
#include <gtest/gtest.h>

#include <algorithm>
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
  for (const core::RandomLease& later : swarm.world.state().unpublished) {
    EXPECT_EQ(named.count(later.microbatch), 0u);
    named.insert(later.microbatch);  // with the next merge
  }
  for (const MicrobatchId id : random) EXPECT_EQ(named.count(id), 1u) << id;
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

// What was drawn between two entries of the ledger and is public by then.
struct Draws {
  std::set<std::string> random_leases;
  std::set<std::string> pairings;
  std::set<std::string> tokens;
  std::set<uint64_t> sealed;    // of entries
  std::set<uint64_t> unsealed;
};

Draws draws_of(const OrchestratorWorld& world, size_t from) {
  Draws draws;
  for (size_t i = from; i < world.events.size(); ++i) {
    const core::Event& event = world.events[i];
    if (const auto* random = std::get_if<core::RandomLeasesPublished>(&event)) {
      for (const core::RandomLease& lease : random->leases) draws.random_leases.insert(encode(lease));
    } else if (const auto* paired = std::get_if<core::PairingsPublished>(&event)) {
      for (const core::PublishedPairing& pairing : paired->pairings) draws.pairings.insert(encode(pairing));
    } else if (const auto* key = std::get_if<core::SecretUnsealed>(&event)) {
      draws.unsealed.insert(key->id);
    }
    if (const auto id = core::seal_id(event)) draws.sealed.insert(*id);
  }
  for (const core::ShardResult& result : world.stage(0).past.back().results) {
    for (const core::ResultCopy& copy : result.copies) draws.tokens.insert(copy.token.hex());
  }
  return draws;
}

// The same microbatches, attempts and targets by the same participants once more: what was published of the first time says
// nothing of the second.
TEST(Publication, AResumedRunDrawsAnew) {
  core::RunSpec spec = small_spec(2, 3);
  spec.pipeline.random_pathway_share = 0.5;
  spec.training.steps = 1000;
  spec.merge.quorum = 1;
  ScriptedSwarm swarm(spec);
  std::vector<Draws> lives;
  for (int life = 0; life < 3; ++life) {
    const size_t from = swarm.world.events.size();
    if (life > 0) {
      core::RunResumed resumed;
      resumed.run_spec = encode(spec);
      resumed.data_plan = encode(small_data());
      resumed.stages.resize(2);
      swarm.world.step(resumed);
      for (const auto& miner : swarm.miners) miner->restart();
    }
    swarm.start();
    for (int i = 0; swarm.world.stage(0).epoch == 0 || swarm.world.stage(1).epoch == 0; ++i) {
      swarm.train(1);
      ASSERT_LT(i, 50);
    }
    lives.push_back(draws_of(swarm.world, from));
  }
  const auto share_any = [](const auto& a, const auto& b) {
    return std::any_of(a.begin(), a.end(), [&](const auto& item) { return b.count(item) > 0; });
  };
  for (size_t before = 0; before < lives.size(); ++before) {
    EXPECT_FALSE(lives[before].pairings.empty() || lives[before].tokens.empty() || lives[before].unsealed.empty());
    for (size_t after = before + 1; after < lives.size(); ++after) {
      EXPECT_NE(lives[before].random_leases, lives[after].random_leases);
      EXPECT_FALSE(share_any(lives[before].pairings, lives[after].pairings));  // numbers of shards are drawn too
      EXPECT_FALSE(share_any(lives[before].tokens, lives[after].tokens));
      EXPECT_FALSE(share_any(lives[before].unsealed, lives[after].sealed));
    }
  }
}

}  // namespace
}  // namespace tessera::test
