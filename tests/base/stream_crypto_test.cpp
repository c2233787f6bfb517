#include "tessera/base/stream_crypto.h"

#include <gtest/gtest.h>

#include <string>

#include "tessera/base/crypto.h"

namespace tessera {
namespace {

TEST(KeyExchange, BothSidesMakeTheSameKey) {
  KeyExchange left;
  KeyExchange right;
  const auto key = left.agree(right.public_key(), "context");
  ASSERT_TRUE(key.has_value());
  EXPECT_EQ(key, right.agree(left.public_key(), "context"));
  EXPECT_NE(key, right.agree(left.public_key(), "other context"));
  EXPECT_NE(key, KeyExchange().agree(right.public_key(), "context"));
}

TEST(KeyExchange, RefusesKeysThatLeaveNoSecret) {
  const KeyExchange exchange;
  EXPECT_FALSE(exchange.agree("", "context"));
  EXPECT_FALSE(exchange.agree(std::string(31, 'k'), "context"));
  EXPECT_FALSE(exchange.agree(std::string(33, 'k'), "context"));
  EXPECT_FALSE(exchange.agree(std::string(32, '\0'), "context"));  // the point of order 1
  std::string one(32, '\0');
  one[0] = 1;  // of order 4
  EXPECT_FALSE(exchange.agree(one, "context"));
}

struct Tagging : testing::Test {
  const Digest key = digest_of("key");
  MessageTagger sender{key};
  MessageTagger receiver{key};
  MessageTagger::Tag tag(std::string_view message) {
    sender.begin();
    sender.add(message);
    return sender.finish();
  }
  bool fits(std::string_view message, const MessageTagger::Tag& with) {
    receiver.begin();
    receiver.add(message);
    return receiver.check(with);
  }
};

TEST_F(Tagging, FitsInOrderAndInAnyPieces) {
  const auto first = tag("a message");
  const auto second = tag("");
  receiver.begin();
  receiver.add("a mess");
  receiver.add("");
  receiver.add("age");
  EXPECT_TRUE(receiver.check(first));
  EXPECT_TRUE(fits("", second));
}

TEST_F(Tagging, ChangedRepeatedLeftOutOrMovedDoesNotFit) {
  const auto first = tag("message");
  EXPECT_FALSE(fits("Message", first));
  const auto second = tag("message");
  EXPECT_NE(first, second);
  EXPECT_TRUE(fits("message", second));
  EXPECT_FALSE(fits("message", second));  // once more
  tag("left out");
  tag("the receiver is at number 4 now");
  EXPECT_FALSE(fits("message", tag("message")));
}

TEST_F(Tagging, AnotherKeyDoesNotFit) {
  MessageTagger other(digest_of("other key"));
  other.begin();
  other.add("message");
  EXPECT_FALSE(fits("message", other.finish()));
}

}  // namespace
}  // namespace tessera
