#include "tessera/core/butterfly.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace tessera::core {
namespace {

using Pair = std::pair<uint32_t, uint32_t>;

std::vector<Pair> owners_in_order(const std::vector<PlannedShard>& plan) {
  std::vector<Pair> owners;
  for (const PlannedShard& shard : plan) owners.emplace_back(shard.owner_a, shard.owner_b);
  return owners;
}

// Everything that a plan promises.
void expect_plan(uint32_t participants, uint64_t blocks, uint64_t seed) {
  SCOPED_TRACE(testing::Message() << participants << " participants, " << blocks << " blocks, seed "
                                  << seed);
  const std::vector<PlannedShard> plan = butterfly_plan(participants, blocks, seed);
  ASSERT_EQ(plan.size(), participants == 1 ? 1u : participants * (participants - 1) / 2);
  std::set<Pair> pairs;
  std::vector<uint32_t> owned(participants, 0);
  uint64_t next = 0, smallest = UINT64_MAX, largest = 0;
  for (const PlannedShard& shard : plan) {
    ASSERT_EQ(shard.first_block, next);
    next += shard.block_count;
    smallest = std::min(smallest, shard.block_count);
    largest = std::max(largest, shard.block_count);
    ASSERT_LT(shard.owner_b, participants);
    ASSERT_TRUE(participants == 1 || shard.owner_a < shard.owner_b);
    ASSERT_TRUE(pairs.emplace(shard.owner_a, shard.owner_b).second);
    owned[shard.owner_a]++;
    if (shard.owner_a != shard.owner_b) owned[shard.owner_b]++;
  }
  EXPECT_EQ(next, blocks);
  EXPECT_LE(largest - smallest, 1u);
  for (const uint32_t count : owned) EXPECT_EQ(count, participants == 1 ? 1 : participants - 1);
}

TEST(Butterfly, EverySmallPlanGivesEveryPairOneShard) {
  for (uint32_t participants = 1; participants <= 9; ++participants) {
    for (uint64_t blocks = 0; blocks <= 80; ++blocks) {
      for (const uint64_t seed : {0, 1, 2}) expect_plan(participants, blocks, seed);
    }
  }
}

TEST(Butterfly, LargePlansToo) {
  for (uint32_t participants = 10; participants <= 200; participants += 19) {
    const uint64_t shards = uint64_t{participants} * (participants - 1) / 2;
    for (const uint64_t blocks :
         {uint64_t{1}, shards - 1, shards, shards + 1, 3 * shards + 7, uint64_t{1} << 40}) {
      expect_plan(participants, blocks, participants * 31 + blocks);
    }
  }
}

TEST(Butterfly, OneParticipantOwnsAllOfIt) {
  const std::vector<PlannedShard> plan = butterfly_plan(1, 17, 5);
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].block_count, 17u);
  EXPECT_EQ(plan[0].owner_a, 0u);
  EXPECT_EQ(plan[0].owner_b, 0u);
}

TEST(Butterfly, TwoParticipantsShareAllOfIt) {
  const std::vector<PlannedShard> plan = butterfly_plan(2, 17, 5);
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].block_count, 17u);
  EXPECT_EQ(owners_in_order(plan), (std::vector<Pair>{{0, 1}}));
}

TEST(Butterfly, ThePairingIsASecretOfTheSeed) {
  const auto one = owners_in_order(butterfly_plan(12, 100, 1));
  EXPECT_EQ(one, owners_in_order(butterfly_plan(12, 100, 1)));
  EXPECT_EQ(one, owners_in_order(butterfly_plan(12, 999, 1)));  // the sizes have no part in it
  std::set<std::vector<Pair>> orders;
  std::set<Pair> first;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const auto owners = owners_in_order(butterfly_plan(12, 100, seed));
    orders.insert(owners);
    first.insert(owners.front());
  }
  EXPECT_EQ(orders.size(), 300u);
  EXPECT_GT(first.size(), 60u);  // nearly every one of the 66 pairs had the first shard once
}

// What lets whole shards be ready early: everyone has one shard in each round, or one fewer with an odd number of them.
TEST(Butterfly, NobodyHasTwoShardsInARound) {
  for (uint32_t participants = 2; participants <= 33; ++participants) {
    const uint32_t rounds = butterfly_rounds(participants);
    EXPECT_EQ(rounds, participants % 2 == 0 ? participants - 1 : participants);
    for (const uint64_t seed : {0, 1, 2}) {
      const auto owners = owners_in_order(butterfly_plan(participants, 100000, seed));
      const size_t each = participants / 2;
      ASSERT_EQ(owners.size(), rounds * each);
      for (uint32_t round = 0; round < rounds; ++round) {
        std::set<uint32_t> busy;
        for (size_t i = 0; i < each; ++i) {
          busy.insert(owners[round * each + i].first);
          busy.insert(owners[round * each + i].second);
        }
        ASSERT_EQ(busy.size(), 2 * each) << participants << " participants, round " << round;
      }
    }
  }
  EXPECT_EQ(butterfly_rounds(1), 1u);
}

// What participant 0 sees, which of the shards are its own, says nothing about who has one of the others, nor whom it shares with.
TEST(Butterfly, OnesOwnShardsSayNothingOfTheOtherPairs) {
  std::map<Pair, int> of_another, of_its_own;
  int others = 0, own = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    const Pair pair = owners_in_order(butterfly_plan(6, 30, seed))[4];
    if (pair.first == 0) {
      of_its_own[pair]++, own++;
    } else {
      of_another[pair]++, others++;
    }
  }
  ASSERT_EQ(of_another.size(), 10u);
  ASSERT_EQ(of_its_own.size(), 5u);
  for (const auto& [pair, count] : of_another) EXPECT_NEAR(count, others / 10.0, 100) << pair.first << " " << pair.second;
  for (const auto& [pair, count] : of_its_own) EXPECT_NEAR(count, own / 5.0, 100) << pair.second;
}

TEST(ButterflyDeathTest, NobodyIsABug) {
  EXPECT_DEATH(butterfly_plan(0, 1, 1), "participants >= 1");
}

}  // namespace
}  // namespace tessera::core
