// The simulated clock: what happens next, in order of time, and within one time in the order in
// which it was asked for. A 4-ary heap of plain values; whatever an event needs beyond them lies
// with whom it concerns.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/base/clock.h"

namespace tessera::sim {

using TimeUs = int64_t;
inline constexpr TimeUs kNever = INT64_MAX;
// Simulated time begins here: to core, 0 often means "none".
inline constexpr TimeUs kBeginUs = 1000000;

inline TimeUs us_of_ms(double milliseconds) { return static_cast<TimeUs>(milliseconds * 1000); }
inline TimeUs us_of_s(double seconds) { return static_cast<TimeUs>(seconds * 1e6); }

enum class EventKind : uint8_t {
  kStart,    // a process begins
  kWake,     // a miner's control has something to do
  kArrive,   // a message is at the receiver's link
  kDeliver,  // and through it
  kComputeDone,
  kBackgroundDone,
  kTokensRead,
  kSendTimeout,
  kProbeTimeout,
  kCallTimeout,
  kBoot,  // the orchestrator's process begins
  kOrchestratorTick,
  kCommit,
  kJobDone,  // of the orchestrator's background
  kSample,
  kFault,
  kFaultOver,
  kFaultsEnd,
};

struct Event {
  TimeUs at_us = 0;
  uint64_t order = 0;
  uint64_t value = 0;
  uint32_t node = 0;
  uint32_t generation = 0;  // of the node's process
  EventKind kind = EventKind::kStart;
};

class EventQueue {
 public:
  TimeUs now_us() const { return now_us_; }
  TimeMs now_ms() const { return now_us_ / 1000; }
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  uint64_t popped() const { return popped_; }
  TimeUs next_us() const { return heap_.empty() ? kNever : heap_.front().at_us; }

  // Times in the past happen now.
  void push(TimeUs at_us, EventKind kind, uint32_t node = 0, uint32_t generation = 0,
            uint64_t value = 0) {
    push({at_us, 0, value, node, generation, kind});
  }
  void push(Event event) {
    if (event.at_us < now_us_) event.at_us = now_us_;
    event.order = next_order_++;
    size_t i = heap_.size();
    heap_.push_back(event);
    while (i > 0) {
      const size_t parent = (i - 1) / 4;
      if (!before(event, heap_[parent])) break;
      heap_[i] = heap_[parent];
      i = parent;
    }
    heap_[i] = event;
  }
  // Not of an empty queue. Time goes on to it.
  Event pop() {
    const Event first = heap_.front();
    const Event last = heap_.back();
    heap_.pop_back();
    if (!heap_.empty()) sift_down(last);
    now_us_ = first.at_us;
    ++popped_;
    return first;
  }

 private:
  static bool before(const Event& a, const Event& b) {
    return a.at_us != b.at_us ? a.at_us < b.at_us : a.order < b.order;
  }
  void sift_down(const Event& event) {
    size_t i = 0;
    while (true) {
      const size_t child = 4 * i + 1;
      if (child >= heap_.size()) break;
      const size_t end = child + 4 < heap_.size() ? child + 4 : heap_.size();
      size_t least = child;
      for (size_t c = child + 1; c < end; ++c) {
        if (before(heap_[c], heap_[least])) least = c;
      }
      if (!before(heap_[least], event)) break;
      heap_[i] = heap_[least];
      i = least;
    }
    heap_[i] = event;
  }

  std::vector<Event> heap_;
  TimeUs now_us_ = kBeginUs;
  uint64_t next_order_ = 0;
  uint64_t popped_ = 0;
};

}  // namespace tessera::sim
