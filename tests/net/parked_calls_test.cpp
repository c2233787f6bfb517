#include "net/parked_calls.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "tessera/base/crypto.h"

namespace tessera::net {
namespace {

TEST(ParkedCalls, WaitForAllOrTheirTime) {
  ParkedCalls<int> parked(3);
  const Digest a = digest_of("a"), b = digest_of("b");
  EXPECT_EQ(parked.next_expiry(), std::nullopt);
  EXPECT_TRUE(parked.park(1, {a, b}, 100));
  EXPECT_TRUE(parked.park(2, {b}, 50));
  EXPECT_TRUE(parked.park(3, {a, a}, 200));
  EXPECT_FALSE(parked.park(4, {a}, 10));
  EXPECT_EQ(parked.next_expiry(), 50);
  EXPECT_EQ(parked.arrived(a), (std::vector<int>{3}));
  EXPECT_TRUE(parked.arrived(a).empty());
  EXPECT_TRUE(parked.expired(49).empty());
  EXPECT_EQ(parked.expired(50), (std::vector<int>{2}));
  EXPECT_EQ(parked.arrived(b), (std::vector<int>{1}));
  EXPECT_TRUE(parked.park(5, {a, b}, 100));
  EXPECT_EQ(parked.expired(100), (std::vector<int>{5}));
  EXPECT_TRUE(parked.arrived(a).empty() && parked.arrived(b).empty());
}

}  // namespace
}  // namespace tessera::net
