#include "tessera/core/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tessera/base/prng.h"

namespace tessera::core {
namespace {

using Candidates = std::vector<RouteCandidate>;

std::map<MinerIndex, int> shares(Router& router, const Candidates& candidates, int picks) {
  std::map<MinerIndex, int> given;
  for (int i = 0; i < picks; ++i) given[router.pick(candidates)]++;
  return given;
}

TEST(Router, NobodyIsPickedFromNobody) {
  Router router;
  EXPECT_EQ(router.pick({}), kNoMiner);
}

TEST(Router, SpeedsOfOneTwoFourGiveTheseSharesAndSpreadThem) {
  Router router;
  const Candidates candidates = {{0, 400, 0}, {1, 200, 0}, {2, 100, 0}};
  std::vector<MinerIndex> order;
  for (int i = 0; i < 14; ++i) order.push_back(router.pick(candidates));
  for (const int round : {0, 7}) {
    const auto first = order.begin() + round;
    EXPECT_EQ(std::count(first, first + 7, 0u), 1);
    EXPECT_EQ(std::count(first, first + 7, 1u), 2);
    EXPECT_EQ(std::count(first, first + 7, 2u), 4);
  }
  // Interleaved: the fast one never has more than two in a row, the middle one never two.
  for (size_t i = 2; i < order.size(); ++i) {
    EXPECT_FALSE(order[i] == 2 && order[i - 1] == 2 && order[i - 2] == 2) << i;
    EXPECT_FALSE(order[i] == 1 && order[i - 1] == 1) << i;
  }
}

// All speeds of 1 to 4 of three miners: over whole rounds each gets its share to the last one.
TEST(Router, SharesAreExactForEverySmallWorld) {
  for (int a = 1; a <= 4; ++a) {
    for (int b = 1; b <= 4; ++b) {
      for (int c = 1; c <= 4; ++c) {
        Router router;
        const Candidates candidates = {{0, 12.0 / a, 0}, {1, 12.0 / b, 0}, {2, 12.0 / c, 0}};
        const int rounds = 12;
        const auto given = shares(router, candidates, rounds * (a + b + c));
        EXPECT_EQ(given,
                  (std::map<MinerIndex, int>{{0, rounds * a}, {1, rounds * b}, {2, rounds * c}}))
            << a << ":" << b << ":" << c;
      }
    }
  }
}

TEST(Router, OneThatIsGoneGetsNothingAndHasNoClaimWhenItIsBack) {
  Router router;
  const Candidates both = {{0, 100, 0}, {1, 100, 0}};
  shares(router, both, 10);
  EXPECT_EQ(shares(router, {{1, 100, 0}}, 50), (std::map<MinerIndex, int>{{1, 50}}));
  const auto after = shares(router, both, 20);
  EXPECT_NEAR(after.at(0), 10, 1);
}

TEST(Router, ANewcomerIsTriedAtOnceWithTheShareOfTheOthers) {
  Router router;
  shares(router, {{0, 100, 0}, {1, 50, 0}, {2, 50, 0}}, 100);
  const Candidates with_newcomer = {{0, 100, 0}, {1, 50, 0}, {2, 50, 0}, {3, 0, 0}};
  EXPECT_GE(shares(router, with_newcomer, 3)[3], 1);
  EXPECT_NEAR(shares(router, with_newcomer, 700).at(3), 200, 4);
}

TEST(Router, AQueueAtOnePutsItBack) {
  Router router;
  EXPECT_EQ(router.pick({{0, 100, 3}, {1, 150, 0}}), 1u);
  const auto given = shares(router, {{0, 100, 3}, {1, 100, 0}}, 3);
  EXPECT_EQ(given.count(0), 0u);
}

// Whatever speeds, in however changing company: nobody who is there all the time starves, and
// shares follow speed.
TEST(Router, SharesFollowSpeedForAnySpeeds) {
  Prng random(7);
  for (int world = 0; world < 50; ++world) {
    Router router;
    Candidates candidates;
    double flow = 0;
    const auto miners = static_cast<uint32_t>(2 + random.below(20));
    for (MinerIndex miner = 0; miner < miners; ++miner) {
      candidates.push_back({miner, 10 + 1000 * random.uniform(), 0});
      flow += 1 / candidates.back().microbatch_ms;
    }
    const int picks = 20000;
    const auto given = shares(router, candidates, picks);
    for (const RouteCandidate& candidate : candidates) {
      const double expected = picks / candidate.microbatch_ms / flow;
      // Each of the others may be one microbatch behind.
      EXPECT_NEAR(given.count(candidate.miner) ? given.at(candidate.miner) : 0, expected, miners)
          << world;
    }
  }
}

TEST(Router, RemembersNoMoreThanItNeeds) {
  Router router;
  for (MinerIndex miner = 0; miner < 10000; ++miner) router.pick({{miner, 10, 0}});
  EXPECT_LE(router.remembered(), 66u);
}

TEST(Router, FarBehindIsThreeTimesTheBestOthersTime) {
  const Candidates others = {{0, 100, 7}, {1, 200, 0}, {2, 0, 0}};
  EXPECT_FALSE(Router::is_far_behind(others[0], {others[0]}));
  EXPECT_TRUE(Router::is_far_behind(others[0], others));          // 700 ms > 3 * 200 ms
  EXPECT_FALSE(Router::is_far_behind({0, 100, 6}, others));       // 600 ms
  EXPECT_FALSE(Router::is_far_behind({3, 5000, 0}, others));      // slow, but it waits for work
  EXPECT_FALSE(Router::is_far_behind({3, 0, 100}, others));       // not measured
  EXPECT_FALSE(Router::is_far_behind({0, 100, 9}, {{2, 0, 0}}));  // nothing to compare with
}

}  // namespace
}  // namespace tessera::core
