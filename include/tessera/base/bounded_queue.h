// A bounded queue between threads, with two priorities. Any number of producers and consumers.
// push() refuses when full (it never waits); pop() waits with a bound. close() wakes everyone; what is queued can
// still be popped.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace tessera {

enum class PushResult { kOk, kFull, kClosed };

template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  PushResult push(T item) { return push_to(normal_, std::move(item)); }
  // Served before everything pushed with push().
  PushResult push_urgent(T item) { return push_to(urgent_, std::move(item)); }

  // The next item; nothing after `timeout`, or at once when the queue is closed and empty.
  std::optional<T> pop(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return closed_ || !normal_.empty() || !urgent_.empty(); });
    std::deque<T>& from = urgent_.empty() ? normal_ : urgent_;
    if (from.empty()) return std::nullopt;
    std::optional<T> item(std::move(from.front()));
    from.pop_front();
    return item;
  }
  std::optional<T> try_pop() { return pop(std::chrono::milliseconds(0)); }

  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    ready_.notify_all();
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }
  size_t size() const {
    std::lock_guard lock(mutex_);
    return normal_.size() + urgent_.size();
  }

 private:
  PushResult push_to(std::deque<T>& queue, T item) {
    std::lock_guard lock(mutex_);
    if (closed_) return PushResult::kClosed;
    if (normal_.size() + urgent_.size() >= capacity_) return PushResult::kFull;
    queue.push_back(std::move(item));
    ready_.notify_one();
    return PushResult::kOk;
  }

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> normal_;
  std::deque<T> urgent_;
  bool closed_ = false;
};

}  // namespace tessera
