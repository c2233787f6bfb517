#include "tessera/core/data_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace tessera::core {
namespace {

TokenShard shard_of(uint64_t tokens) {
  TokenShard shard;
  shard.tokens = tokens;
  return shard;
}

TEST(Permute, IsABijectionOfEverySmallSizeAndOfLargerOnes) {
  std::vector<uint64_t> sizes;
  for (uint64_t size = 1; size <= 300; ++size) sizes.push_back(size);
  for (const uint64_t size : {509, 512, 513, 1021, 1024, 4095, 4096, 4097, 7919, 65536, 65537}) {
    sizes.push_back(size);
  }
  for (const uint64_t size : sizes) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
      std::vector<bool> seen(size, false);
      for (uint64_t index = 0; index < size; ++index) {
        const uint64_t image = permute(index, size, seed);
        ASSERT_LT(image, size);
        ASSERT_FALSE(seen[image]) << "size " << size << " seed " << seed << " image " << image;
        seen[image] = true;
      }
    }
  }
}

TEST(Permute, StaysInsideTheLargestSizes) {
  for (const uint64_t size : {UINT64_MAX, (uint64_t{1} << 63) + 1, (uint64_t{1} << 62) - 57}) {
    std::set<uint64_t> images;
    for (uint64_t i = 0; i < 1000; ++i) {
      const uint64_t image = permute(size - 1 - i, size, 7);
      ASSERT_LT(image, size);
      images.insert(image);
    }
    EXPECT_EQ(images.size(), 1000u);
  }
}

TEST(Permute, DependsOnTheSeedAndMixes) {
  constexpr uint64_t kSize = 10007;
  uint64_t same_place = 0, same_for_both_seeds = 0, neighbours = 0;
  for (uint64_t index = 0; index < kSize; ++index) {
    const uint64_t image = permute(index, kSize, 1);
    same_place += image == index;
    same_for_both_seeds += image == permute(index, kSize, 2);
    if (index > 0) {
      const uint64_t before = permute(index - 1, kSize, 1);
      neighbours += before + 1 == image || image + 1 == before;
    }
  }
  // A random permutation has one fixed point on average, and two of them agree in one place.
  EXPECT_LT(same_place, 10u);
  EXPECT_LT(same_for_both_seeds, 10u);
  EXPECT_LT(neighbours, 20u);
}

// What nodes of different builds must agree on: a change of these numbers changes every run's data
// order.
TEST(Permute, HasPinnedValues) {
  std::vector<uint64_t> images;
  for (uint64_t index = 0; index < 10; ++index) images.push_back(permute(index, 10, 42));
  EXPECT_EQ(images, (std::vector<uint64_t>{1, 9, 4, 5, 7, 0, 3, 2, 6, 8}));
  EXPECT_EQ(permute(123456789, 1000000007, 99), 216018012u);
}

TEST(WindowCount, CountsWholeWindowsOfEveryShard) {
  EXPECT_EQ(window_count({}, 8), 0u);
  EXPECT_EQ(window_count({shard_of(0)}, 8), 0u);
  EXPECT_EQ(window_count({shard_of(8)}, 8), 0u);  // T + 1 tokens are needed
  EXPECT_EQ(window_count({shard_of(9)}, 8), 1u);
  EXPECT_EQ(window_count({shard_of(16)}, 8), 1u);
  EXPECT_EQ(window_count({shard_of(17)}, 8), 2u);
  EXPECT_EQ(window_count({shard_of(17), shard_of(3), shard_of(9)}, 8), 3u);
}

TEST(WindowsOf, EveryPassVisitsEveryWindowOnceInItsOwnOrder) {
  const std::vector<TokenShard> shards = {shard_of(41), shard_of(5), shard_of(0), shard_of(93)};
  constexpr uint32_t kContext = 4, kRows = 3;
  const uint64_t count = window_count(shards, kContext);
  ASSERT_EQ(count, 10u + 1u + 0u + 23u);
  std::vector<std::pair<uint32_t, uint64_t>> order;
  for (MicrobatchId microbatch = 0; order.size() < 3 * count; ++microbatch) {
    for (const Window& window : windows_of(shards, kContext, 5, microbatch, kRows)) {
      EXPECT_EQ(window.first_token % kContext, 0u);
      EXPECT_LE(window.first_token + kContext + 1, shards[window.shard].tokens);
      order.emplace_back(window.shard, window.first_token);
    }
  }
  std::vector<std::vector<std::pair<uint32_t, uint64_t>>> passes;
  for (int pass = 0; pass < 3; ++pass) {
    passes.emplace_back(order.begin() + pass * count, order.begin() + (pass + 1) * count);
    EXPECT_EQ(std::set(passes[pass].begin(), passes[pass].end()).size(), count);
  }
  EXPECT_NE(passes[0], passes[1]);
  EXPECT_NE(passes[1], passes[2]);
}

TEST(WindowsOf, DependsOnTheSequenceNumberNotOnTheRowsOfAMicrobatch) {
  const std::vector<TokenShard> shards = {shard_of(1000)};
  std::vector<uint64_t> by_one, by_four;
  for (MicrobatchId m = 0; m < 40; ++m) {
    by_one.push_back(windows_of(shards, 10, 3, m, 1)[0].first_token);
  }
  for (MicrobatchId m = 0; m < 10; ++m) {
    for (const Window& window : windows_of(shards, 10, 3, m, 4)) {
      by_four.push_back(window.first_token);
    }
  }
  EXPECT_EQ(by_one, by_four);
}

TEST(WindowsOfDeathTest, AbortsWithoutWindows) {
  EXPECT_DEATH(windows_of({shard_of(8)}, 8, 1, 0, 1), "count > 0");
}

}  // namespace
}  // namespace tessera::core
