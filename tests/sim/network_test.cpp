#include "sim/network.h"

#include <gtest/gtest.h>

namespace tessera::sim {
namespace {

config::SimSpec spec(double latency_ms, double jitter_ms, double up_mbit, double down_mbit) {
  config::SimSpec sim;
  sim.latency_ms = latency_ms;
  sim.latency_jitter_ms = jitter_ms;
  sim.upload_mbit = up_mbit;
  sim.download_mbit = down_mbit;
  return sim;
}

TEST(Network, AMessageTakesItsBytesAndTheLatency) {
  Prng random(1);
  Network network(spec(20, 0, 8, 4), &random);  // 1 and 2 us a byte
  network.add_node();
  EXPECT_EQ(network.arrival(1000, 0, 5000), 1000 + 5000 + 20000);
  EXPECT_EQ(network.delivery(26000, 0, 5000), 26000 + 10000);
}

TEST(Network, MessagesQueueForALink) {
  Prng random(1);
  Network network(spec(10, 0, 8, 8), &random);
  network.add_node();
  network.add_node();
  EXPECT_EQ(network.arrival(0, 0, 1000), 11000);
  EXPECT_EQ(network.arrival(0, 0, 1000), 12000);
  EXPECT_EQ(network.arrival(0, 1, 1000), 11000);      // another's link
  EXPECT_EQ(network.arrival(50000, 0, 1000), 61000);  // it is free again
  // A megabyte is on its way, one more would come too late, and a small message waits for a buffer's length only.
  EXPECT_EQ(network.frame_arrival(100000, 0, 1000000, 2000000), 1110000);
  EXPECT_EQ(network.frame_arrival(100000, 0, 1000000, 1900000), std::nullopt);
  EXPECT_EQ(network.frame_arrival(100000, 0, 1000000, 3000000), 2910000);
  EXPECT_EQ(network.arrival(100000, 0, 1000), 100000 + 262144 + 1000 + 10000);
  EXPECT_EQ(network.delivery(0, 1, 3000), 3000);
  EXPECT_EQ(network.delivery(1000, 1, 1000), 4000);
}

TEST(Network, NoLimitIsNoTime) {
  Prng random(1);
  Network network(spec(10, 0, 0, 0), &random);
  network.add_node();
  EXPECT_EQ(network.arrival(0, 0, 1000000), 10000);
  EXPECT_EQ(network.delivery(7, 0, 1000000), 7);
}

TEST(Network, JitterStaysInItsBounds) {
  Prng random(3);
  Network network(spec(10, 5, 0, 0), &random);
  TimeUs least = kNever;
  TimeUs most = 0;
  for (int i = 0; i < 1000; ++i) {
    const TimeUs latency = network.latency();
    least = std::min(least, latency);
    most = std::max(most, latency);
  }
  EXPECT_GE(least, 10000);
  EXPECT_LE(most, 15000);
  EXPECT_GT(most - least, 4000);
}

TEST(Network, PartitionsOverlapAndMend) {
  Prng random(1);
  Network network(spec(10, 0, 0, 0), &random);
  for (int i = 0; i < 3; ++i) network.add_node();
  network.cut(1, 1);
  network.cut(2, 1);
  EXPECT_TRUE(network.reach(1, 2));  // on the same side
  EXPECT_FALSE(network.reach(0, 1));
  network.cut(2, 2);
  EXPECT_FALSE(network.reach(1, 2));
  network.mend(1, 1);
  network.mend(2, 1);
  EXPECT_TRUE(network.reach(0, 1));
  EXPECT_FALSE(network.reach(0, 2));
  network.mend(2, 2);
  EXPECT_TRUE(network.reach(0, 2));
  EXPECT_FALSE(network.is_cut(2));
}

}  // namespace
}  // namespace tessera::sim
