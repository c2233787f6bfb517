#include "node/transfer_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace tessera::node {
namespace {

// A link with nobody else on it: a call takes a round trip and its own time on the link, or as long as those before it do.
struct Link {
  double round_trip_s = 0;
  double bytes_per_s = 12.5e6;
  double call_s(const CallWindow& window) const { return static_cast<double>(window.bytes()) / bytes_per_s; }
  double seconds(const CallWindow& window) const {
    return std::max(round_trip_s + call_s(window), static_cast<double>(window.calls()) * call_s(window));
  }
  double filling(const CallWindow& window) const { return 1 + round_trip_s / call_s(window); }
};

void settle(CallWindow* window, const Link& link, double slower = 1) {
  for (int call = 0; call < 500; ++call) window->note(slower * link.seconds(*window), window->calls());
}

TEST(CallWindow, FillsTheLinkAndLeavesLittleWaiting) {
  for (const double round_trip_s : {0.0, 0.001, 0.020, 0.100, 0.300}) {
    for (const double bytes_per_s : {1e6, 12.5e6, 125e6}) {
      const Link link{round_trip_s, bytes_per_s};
      CallWindow window(1024);
      settle(&window, link);
      const double calls = static_cast<double>(window.calls());
      EXPECT_GE(calls, link.filling(window)) << round_trip_s << " " << bytes_per_s;
      EXPECT_LE(calls, link.filling(window) + CallWindow::kManyWait) << round_trip_s << " " << bytes_per_s;
    }
  }
}

TEST(CallWindow, MakesLargerCallsOnlyWhereTheyAreShort) {
  CallWindow slow(8), fast(8);
  settle(&slow, {0, 12.5e6});
  settle(&fast, {0, 1e9});
  EXPECT_EQ(slow.bytes(), CallWindow::kLeastBytes);
  EXPECT_EQ(fast.bytes(), CallWindow::kMostBytes);
}

TEST(CallWindow, HasNoMoreCallsThanItMay) {
  CallWindow window(8);
  settle(&window, {.round_trip_s = 10});
  EXPECT_EQ(window.calls(), 8u);
}

TEST(CallWindow, GivesWayToWhoElseIsOnTheLink) {
  CallWindow window(64);
  settle(&window, {0.100});
  const size_t alone = window.calls();
  settle(&window, {0.100}, 2);
  EXPECT_LT(window.calls(), alone);
  EXPECT_GE(window.calls(), 1u);
}

TEST(CallWindow, ACallThatHadRoomLeftDoesNotWidenIt) {
  CallWindow window(64);
  for (int call = 0; call < 10; ++call) window.note(0.1, 1);
  EXPECT_EQ(window.calls(), 2u);
}

TEST(TransferWindow, RunsEverythingAndNeverMoreAtOnceThanItMay) {
  TransferWindow window(3);
  std::atomic<int> left{400}, running{0}, most{0};
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&] {
      while (window.run([&](uint64_t) {
        const int now = ++running;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        std::this_thread::yield();
        --running;
        return --left > 0;
      })) {
      }
    });
  }
  threads.clear();
  EXPECT_LE(left, 0);
  EXPECT_LE(most, 3);
}

}  // namespace
}  // namespace tessera::node
