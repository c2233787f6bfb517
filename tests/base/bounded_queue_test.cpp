#include "tessera/base/bounded_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace tessera {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kLong{60000};  // never reached: a test that waits this long has failed

TEST(BoundedQueueTest, FirstInFirstOutAndUrgentFirst) {
  BoundedQueue<int> queue(8);
  EXPECT_EQ(queue.push(1), PushResult::kOk);
  EXPECT_EQ(queue.push(2), PushResult::kOk);
  EXPECT_EQ(queue.push_urgent(11), PushResult::kOk);
  EXPECT_EQ(queue.push_urgent(12), PushResult::kOk);
  EXPECT_EQ(queue.push(3), PushResult::kOk);
  EXPECT_EQ(queue.size(), 5u);
  for (const int expected : {11, 12, 1, 2, 3}) EXPECT_EQ(queue.pop(kLong), expected);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(BoundedQueueTest, RefusesWhenFull) {
  BoundedQueue<int> queue(2);
  EXPECT_EQ(queue.push(1), PushResult::kOk);
  EXPECT_EQ(queue.push_urgent(2), PushResult::kOk);
  EXPECT_EQ(queue.push(3), PushResult::kFull);
  EXPECT_EQ(queue.push_urgent(3), PushResult::kFull);
  EXPECT_EQ(queue.try_pop(), 2);
  EXPECT_EQ(queue.push(4), PushResult::kOk);
  EXPECT_EQ(queue.try_pop(), 1);
  EXPECT_EQ(queue.try_pop(), 4);
}

TEST(BoundedQueueTest, EmptyPopEndsAtItsTimeout) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.try_pop(), std::nullopt);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(queue.pop(milliseconds(20)), std::nullopt);
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(20));
}

TEST(BoundedQueueTest, CloseRefusesPushesAndLeavesWhatIsQueued) {
  BoundedQueue<int> queue(4);
  EXPECT_EQ(queue.push(1), PushResult::kOk);
  queue.close();
  EXPECT_EQ(queue.push(2), PushResult::kClosed);
  EXPECT_EQ(queue.push_urgent(2), PushResult::kClosed);
  EXPECT_EQ(queue.pop(kLong), 1);
  EXPECT_EQ(queue.pop(kLong), std::nullopt);  // at once
  queue.close();
  EXPECT_EQ(queue.try_pop(), std::nullopt);
}

TEST(BoundedQueueTest, CloseWakesEveryWaiter) {
  BoundedQueue<int> queue(4);
  std::vector<std::future<std::optional<int>>> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.push_back(std::async(std::launch::async, [&] { return queue.pop(kLong); }));
  }
  queue.close();
  for (auto& waiter : waiters) EXPECT_EQ(waiter.get(), std::nullopt);
}

TEST(BoundedQueueTest, PushWakesAWaiter) {
  BoundedQueue<int> queue(4);
  std::future<std::optional<int>> waiter =
      std::async(std::launch::async, [&] { return queue.pop(kLong); });
  EXPECT_EQ(queue.push(7), PushResult::kOk);
  EXPECT_EQ(waiter.get(), 7);
}

TEST(BoundedQueueTest, HoldsWhatCanOnlyBeMoved) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  EXPECT_EQ(queue.push(std::make_unique<int>(5)), PushResult::kOk);
  EXPECT_EQ(**queue.try_pop(), 5);
}

// Many producers and consumers: nothing is lost or doubled, and one producer's items keep their
// order.
TEST(BoundedQueueTest, ThreadsLoseNothingAndKeepOrder) {
  constexpr int kProducers = 3;
  constexpr int kConsumers = 3;
  constexpr int kItems = 2000;
  BoundedQueue<std::pair<int, int>> queue(16);
  std::vector<std::vector<std::pair<int, int>>> received(kConsumers);
  std::vector<std::thread> consumers;
  for (int consumer = 0; consumer < kConsumers; ++consumer) {
    consumers.emplace_back([&, consumer] {
      while (const auto item = queue.pop(kLong)) received[consumer].push_back(*item);
    });
  }
  std::vector<std::thread> producers;
  for (int producer = 0; producer < kProducers; ++producer) {
    producers.emplace_back([&, producer] {
      for (int i = 0; i < kItems; ++i) {
        while (queue.push({producer, i}) == PushResult::kFull) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : producers) thread.join();
  queue.close();
  for (std::thread& thread : consumers) thread.join();

  std::vector<int> counts(kProducers * kItems);
  for (const auto& items : received) {
    std::vector<int> last(kProducers, -1);
    for (const auto& [producer, i] : items) {
      EXPECT_GT(i, last[producer]);
      last[producer] = i;
      ++counts[producer * kItems + i];
    }
  }
  EXPECT_EQ(counts, std::vector<int>(kProducers * kItems, 1));
}

}  // namespace
}  // namespace tessera
