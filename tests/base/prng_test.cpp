#include "tessera/base/prng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace tessera {
namespace {

// The sequence of the reference implementation (Vigna, splitmix64.c) for the seeds 0 and 1234567.
TEST(PrngTest, KnownValues) {
  Prng zero(0);
  for (const uint64_t expected :
       {0xe220a8397b1dcdafull, 0x6e789e6aa1b965f4ull, 0x06c45d188009454full, 0xf88bb8a8724c81ecull,
        0x1b39896a51a8749bull}) {
    EXPECT_EQ(zero.next(), expected);
  }
  Prng other(1234567);
  for (const uint64_t expected :
       {6457827717110365317ull, 3203168211198807973ull, 9817491932198370423ull,
        4593380528125082431ull, 16408922859458223821ull}) {
    EXPECT_EQ(other.next(), expected);
  }
  EXPECT_EQ(mix64(0), 0xe220a8397b1dcdafull);
}

// Nodes of different builds must agree on these: a change here breaks running swarms.
TEST(PrngTest, DerivedValuesArePinned) {
  Prng random(42);
  std::vector<uint64_t> draws;
  for (int i = 0; i < 8; ++i) draws.push_back(random.below(100));
  EXPECT_EQ(draws, (std::vector<uint64_t>{74, 15, 27, 34, 3, 86, 21, 80}));
  std::vector<int> items(8);
  std::iota(items.begin(), items.end(), 0);
  random.shuffle(items);
  EXPECT_EQ(items, (std::vector<int>{0, 3, 5, 6, 7, 1, 4, 2}));
  EXPECT_EQ(random.uniform(), 0x1.a0a2962a6be18p-3);
}

TEST(PrngTest, BelowIsUniformAndBounded) {
  Prng random(1);
  EXPECT_EQ(random.below(1), 0u);
  constexpr int kDraws = 60000;
  int counts[6] = {};
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = random.below(6);
    ASSERT_LT(value, 6u);
    ++counts[value];
  }
  // Standard deviation 91; the seed is fixed, so this either holds or the generator changed.
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 6, 400);
}

// With this bound a generator without rejection would give the lower half of the values twice as
// often.
TEST(PrngTest, BelowHasNoModuloBias) {
  Prng random(2);
  const uint64_t bound = (uint64_t{1} << 63) + (uint64_t{1} << 62);
  constexpr int kDraws = 30000;
  int thirds[3] = {};
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = random.below(bound);
    ASSERT_LT(value, bound);
    ++thirds[value / (uint64_t{1} << 62)];
  }
  for (const int count : thirds) EXPECT_NEAR(count, kDraws / 3, 350);
}

TEST(PrngTest, UniformStaysInItsInterval) {
  Prng random(3);
  double sum = 0;
  double least = 1;
  double most = 0;
  for (int i = 0; i < 10000; ++i) {
    const double value = random.uniform();
    least = std::min(least, value);
    most = std::max(most, value);
    sum += value;
  }
  EXPECT_GE(least, 0.0);
  EXPECT_LT(least, 0.001);
  EXPECT_LT(most, 1.0);
  EXPECT_GT(most, 0.999);
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
}

TEST(PrngTest, ShuffleGivesEveryOrder) {
  Prng random(4);
  int counts[6] = {};
  for (int i = 0; i < 6000; ++i) {
    std::vector<int> items = {0, 1, 2};
    random.shuffle(items);
    ++counts[items[0] * 2 + (items[1] > items[2] ? 1 : 0)];
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);
  std::vector<int> none;
  random.shuffle(none);
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace tessera
