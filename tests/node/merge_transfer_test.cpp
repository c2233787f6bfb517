// The order of a merge's transfers, and what is kept of them.
#include "tessera/node/merge_transfer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/memory_ports.h"

namespace tessera::node {
namespace {

TEST(TransferOrder, VisitsEveryBlockOnceAndEveryPartEvenly) {
  EXPECT_TRUE(transfer_order(0, 1).empty());
  EXPECT_TRUE(transfer_order(0, 5).empty());
  for (uint64_t blocks = 1; blocks < 200; ++blocks) {
    std::vector<uint64_t> order = transfer_order(blocks, 1);
    for (uint64_t seen = 1; seen <= blocks; ++seen) {
      // Of any half of the stage, half of what came, give or take a few.
      const auto low = std::count_if(order.begin(), order.begin() + static_cast<int64_t>(seen),
                                     [&](uint64_t block) { return 2 * block < blocks; });
      ASSERT_NEAR(static_cast<double>(low), static_cast<double>(seen) / 2, 4) << blocks;
    }
    std::sort(order.begin(), order.end());
    for (uint64_t i = 0; i < blocks; ++i) ASSERT_EQ(order[i], i);
  }
}

TEST(TransferOrder, FinishesOneRoundBeforeTheNext) {
  for (const uint32_t rounds : {2u, 3u, 7u, 4096u}) {
    for (uint64_t blocks = 1; blocks < 100; ++blocks) {
      const std::vector<uint64_t> order = transfer_order(blocks, rounds);
      ASSERT_EQ(std::set<uint64_t>(order.begin(), order.end()).size(), blocks);
      ASSERT_EQ(*std::max_element(order.begin(), order.end()), blocks - 1);
      const uint64_t parts = std::min<uint64_t>(rounds, blocks);
      uint64_t end = 0;
      for (uint64_t part = 0; part < parts; ++part) {
        end += blocks / parts + (part < blocks % parts ? 1 : 0);
        for (uint64_t i = 0; i < end; ++i) ASSERT_LT(order[i], end) << rounds << " rounds of " << blocks;
      }
    }
  }
}

TEST(KeptBlobs, FetchesNoMoreThanItMayKeep) {
  test::MemoryBlobs store;
  KeptBlobs kept(store);
  const std::vector<Digest> names = *store.put({"abc", "de"});
  kept.begin(4);
  ASSERT_TRUE(kept.fetch({names[0]}).ok());
  ASSERT_TRUE(kept.fetch({names[0]}).ok());
  EXPECT_TRUE(kept.has(names[0]));
  ASSERT_TRUE(kept.fetch({names[1]}).ok());
  EXPECT_FALSE(kept.has(names[1]));  // there was no room
  ASSERT_TRUE(kept.put({"f"}).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(kept.fetch({names[1]})));
}

TEST(KeptBlobs, ServesWhatItWasGivenUpToItsLimit) {
  test::MemoryBlobs store;
  KeptBlobs kept(store);
  kept.begin(5);
  const std::vector<Digest> names = *kept.put({"abc", "de", "f"});
  EXPECT_TRUE(kept.has(names[0]) && kept.has(names[1]));
  EXPECT_FALSE(kept.has(names[2]));
  store.forget(names[0]);
  EXPECT_EQ(*kept.get(names), (std::vector<std::string>{"abc", "de", "f"}));
  kept.clear();
  EXPECT_FALSE(kept.get(names).ok());
}

}  // namespace
}  // namespace tessera::node
