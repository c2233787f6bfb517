// How large the calls of a bulk transfer are and how many are under way: enough to fill the link, few enough that what waits in
// front of it does not hold up everything else that goes the same way (as TCP Vegas does, Brakmo and Peterson 1995, over calls
// instead of segments).
//
// The shortest time of a call is what one takes that waits behind nobody. Of n calls under way that take t instead of that s,
// n (1 - s/t) wait; between two and four shall.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace tessera::node {

// The arithmetic. Not thread-safe.
class CallWindow {
 public:
  static constexpr double kFewWait = 2, kManyWait = 4;
  static constexpr uint64_t kLeastBytes = uint64_t{128} << 10, kMostBytes = uint64_t{2} << 20;
  static constexpr double kShortS = 0.010;  // a call that is over sooner is too small to be worth its own cost

  explicit CallWindow(size_t most) : most_(most) {}
  size_t calls() const { return calls_; }
  uint64_t bytes() const { return bytes_; }  // of the next call
  // A call of bytes(), one of `under_way` when it began, took so long.
  void note(double seconds, size_t under_way) {
    shortest_ = shortest_ > 0 ? std::min(shortest_, seconds) : seconds;
    if (seconds < kShortS && bytes_ < kMostBytes) {
      bytes_ *= 2;
      calls_ = std::max<size_t>(1, calls_ / 2);
      shortest_ = 0;
      return;
    }
    const double wait = static_cast<double>(under_way) * (1 - shortest_ / seconds);
    if (wait < kFewWait && under_way >= calls_) calls_ = std::min(most_, calls_ + 1);
    if (wait > kManyWait) calls_ = std::max<size_t>(1, calls_ - 1);
  }

 private:
  const size_t most_;
  size_t calls_ = 1;
  uint64_t bytes_ = kLeastBytes;
  double shortest_ = 0;  // of bytes_
};

// Of the threads of one transfer, which wait until one more call may begin.
class TransferWindow {
 public:
  explicit TransferWindow(size_t most) : window_(most) {}

  // `call`, which is told how many bytes to move and returns whether there was as much to do, once there is room for it.
  // Returns what `call` does.
  template <class Call>
  bool run(const Call& call) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ < window_.calls(); });
    const size_t under_way = ++under_way_;
    const uint64_t bytes = window_.bytes();
    lock.unlock();
    const auto begin = std::chrono::steady_clock::now();
    const bool whole = call(bytes);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    lock.lock();
    --under_way_;
    if (whole && bytes == window_.bytes()) window_.note(took.count(), under_way);
    changed_.notify_all();
    return whole;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  CallWindow window_;
  size_t under_way_ = 0;
};

}  // namespace tessera::node
