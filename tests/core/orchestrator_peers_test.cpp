// Peer tables and neighbourhoods: who is told of whom.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

core::RunSpec neighbourly_spec(uint32_t stages, uint32_t miners, uint32_t peers) {
  core::RunSpec spec = small_spec(stages, miners);
  spec.pipeline.peers_per_miner = peers;
  spec.training.steps = 400;
  return spec;
}

std::set<MinerIndex> peers_of(ScriptedMiner& miner, OrchestratorWorld& world) {
  core::SyncAnswer answer;
  EXPECT_TRUE(world.sync(miner.node(), miner.report(), &answer));
  std::set<MinerIndex> peers;
  for (const core::Peer& peer : *answer.peers) peers.insert(peer.miner);
  return peers;
}

// Whoever is in a miner's table has that miner in its own.
void expect_mutual(ScriptedSwarm& swarm) {
  for (const auto& one : swarm.miners) {
    for (const MinerIndex other : peers_of(*one, swarm.world)) {
      const auto found = std::find_if(swarm.miners.begin(), swarm.miners.end(),
                                      [&](const auto& m) { return m->index() == other; });
      ASSERT_NE(found, swarm.miners.end());
      EXPECT_EQ(peers_of(**found, swarm.world).count(one->index()), 1u)
          << one->index() << " knows " << other << " and not the other way";
    }
  }
}

TEST(Peers, SmallStagesAreOneNeighbourhood) {
  ScriptedSwarm swarm(neighbourly_spec(3, 7, 8));
  swarm.start();
  EXPECT_EQ(swarm.world.state().neighbourhoods, 1u);
  EXPECT_EQ(peers_of(swarm.at(1, 3), swarm.world).size(), 14u);
}

TEST(Peers, ATableStaysBoundedHoweverManyMinersThereAre) {
  ScriptedSwarm swarm(neighbourly_spec(3, 50, 8));
  swarm.start();
  // 8 x 4 < 50 < 8 x 8: neighbourhoods of 6 or 7.
  EXPECT_EQ(swarm.world.state().neighbourhoods, 8u);
  std::set<MinerIndex> reached;
  for (uint32_t replica = 0; replica < 50; ++replica) {
    const std::set<MinerIndex> peers = peers_of(swarm.at(1, replica), swarm.world);
    EXPECT_GE(peers.size(), 12u);
    EXPECT_LE(peers.size(), 14u);
    reached.insert(peers.begin(), peers.end());
  }
  EXPECT_EQ(reached.size(), 100u);  // nobody is left out
  expect_mutual(swarm);
}

TEST(Peers, APathwayStaysInTheHeadsNeighbourhood) {
  core::RunSpec spec = neighbourly_spec(3, 40, 8);
  spec.pipeline.random_pathway_share = 0.5;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.sync_all();
  uint32_t seen = 0;
  for (uint32_t replica = 0; replica < 40; ++replica) {
    for (const core::Lease& lease : swarm.at(0, replica).leases) {
      ++seen;
      for (size_t s = 0; s + 1 < lease.pathway.size(); ++s) {
        const auto sender = std::find_if(
            swarm.miners.begin(), swarm.miners.end(),
            [&](const auto& m) { return m->index() == lease.pathway[s]; });
        EXPECT_EQ(peers_of(**sender, swarm.world).count(lease.pathway[s + 1]), 1u);
      }
    }
  }
  EXPECT_GE(seen, 40u);
}

TEST(Peers, OnlyTheNeighboursOfAChangeAreToldAgain) {
  ScriptedSwarm swarm(neighbourly_spec(2, 32, 8));
  swarm.start();
  ASSERT_EQ(swarm.world.state().neighbourhoods, 8u);
  std::vector<uint64_t> before;
  for (const auto& miner : swarm.miners) before.push_back(miner->sync().peers_version);
  swarm.world.step(core::MinerLost{swarm.at(1, 5).index(), "silent"});
  uint32_t told = 0;
  for (size_t i = 0; i < 32; ++i) {
    core::SyncRequest request = swarm.miners[i]->report();
    request.peers_version = before[i];
    core::SyncAnswer answer;
    ASSERT_TRUE(swarm.world.sync(swarm.miners[i]->node(), request, &answer));
    told += answer.peers.has_value();
  }
  EXPECT_EQ(told, 4u);  // 32 heads in 8 neighbourhoods
}

TEST(Peers, NeighbourhoodsJoinWhenMinersGoAndPartWhenTheyReturn) {
  ScriptedSwarm swarm(neighbourly_spec(2, 32, 8));
  swarm.start();
  ASSERT_EQ(swarm.world.state().neighbourhoods, 8u);
  // The lost ones are all of two neighbourhoods.
  for (uint32_t replica = 0; replica < 32; ++replica) {
    if (swarm.at(1, replica).record().place % 8 < 2) {
      swarm.world.step(core::MinerLost{swarm.at(1, replica).index(), "silent"});
    }
  }
  EXPECT_EQ(swarm.world.state().neighbourhoods, 4u);
  for (uint32_t replica = 4; replica < 32; ++replica) {
    if (swarm.at(1, replica).record().live) {
      swarm.world.step(core::MinerLost{swarm.at(1, replica).index(), "silent"});
    }
  }
  EXPECT_EQ(swarm.world.state().neighbourhoods, 1u);
  swarm.sync_all();  // they all answer again
  EXPECT_EQ(swarm.world.state().neighbourhoods, 8u);
  expect_mutual(swarm);
}

TEST(Peers, ANewcomerTakesAGoneMinersPlace) {
  ScriptedSwarm swarm(neighbourly_spec(2, 4, 8));
  swarm.start();
  const uint32_t place = swarm.at(1, 2).record().place;
  const MinerIndex gone = swarm.at(1, 2).index();
  swarm.world.step(core::MinerLost{gone, "silent"});
  ASSERT_EQ(peers_of(swarm.at(0, 0), swarm.world).count(gone), 1u);  // its neighbours may still hear from it
  ScriptedMiner newcomer(swarm.world, 999, 1);
  newcomer.sync();
  EXPECT_EQ(newcomer.record().place, place);
  EXPECT_EQ(peers_of(swarm.at(0, 0), swarm.world).count(gone), 0u);
  // Should it come back, it is given another place, and works once it holds the stage's state.
  EXPECT_FALSE(swarm.world.miner(gone).ready);
  swarm.at(1, 2).sync();
  EXPECT_EQ(swarm.world.miner(gone).place, 4u);
  EXPECT_TRUE(swarm.world.miner(gone).ready);
}

}  // namespace
}  // namespace tessera::test
