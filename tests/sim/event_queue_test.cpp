#include "sim/event_queue.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tessera/base/prng.h"

namespace tessera::sim {
namespace {

TEST(EventQueue, GivesEventsInTheOrderOfTimeThenOfAsking) {
  EventQueue queue;
  Prng random(1);
  std::vector<std::pair<TimeUs, uint64_t>> expected;
  for (uint64_t i = 0; i < 2000; ++i) {
    const TimeUs at = kBeginUs + static_cast<TimeUs>(random.below(100));
    queue.push(at, EventKind::kWake, 0, 0, i);
    expected.emplace_back(at, i);
  }
  std::sort(expected.begin(), expected.end());
  for (const auto& [at, value] : expected) {
    EXPECT_EQ(queue.next_us(), at);
    const Event event = queue.pop();
    EXPECT_EQ(event.at_us, at);
    EXPECT_EQ(event.value, value);
    EXPECT_EQ(queue.now_us(), at);
  }
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.next_us(), kNever);
  EXPECT_EQ(queue.popped(), 2000u);
}

TEST(EventQueue, WhatIsAskedForInThePastHappensNow) {
  EventQueue queue;
  queue.push(kBeginUs + 50, EventKind::kWake);
  queue.pop();
  queue.push(kBeginUs + 10, EventKind::kWake);
  EXPECT_EQ(queue.pop().at_us, kBeginUs + 50);
}

TEST(EventQueue, StaysInOrderWhileItGrowsAndShrinks) {
  EventQueue queue;
  Prng random(2);
  TimeUs last = kBeginUs;
  for (int i = 0; i < 20000; ++i) {
    if (queue.empty() || random.below(3) != 0) {
      queue.push(queue.now_us() + static_cast<TimeUs>(random.below(1000)), EventKind::kWake);
    } else {
      const TimeUs at = queue.pop().at_us;
      EXPECT_GE(at, last);
      last = at;
    }
  }
}

}  // namespace
}  // namespace tessera::sim
