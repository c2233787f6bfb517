// The frames of one stream that are not wholly there yet.
//
// What a sender announces is not believed: a frame's size is taken off a budget that all streams of
// the server share before its first byte is kept, and what its sender has given up is dropped.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "net/stream_record.h"
#include "tessera/base/clock.h"
#include "tessera/base/status.h"
#include "tessera/core/messages.h"

namespace tessera::net {

// Bytes that frames may hold on their way to the handler. Thread-safe.
class FrameBudget {
 public:
  explicit FrameBudget(size_t bytes) : left_(static_cast<int64_t>(bytes)) {}
  bool take(size_t bytes);
  void give_back(size_t bytes) { left_ += static_cast<int64_t>(bytes); }

 private:
  std::atomic<int64_t> left_;
};

// A frame, or a part of it, and the budget it holds.
class ArrivingFrame {
 public:
  ArrivingFrame(std::shared_ptr<FrameBudget> budget, size_t size)
      : budget_(std::move(budget)), size_(size) {}
  ~ArrivingFrame() {
    if (budget_ != nullptr) budget_->give_back(size_);
  }
  ArrivingFrame(ArrivingFrame&& other) noexcept
      : bytes(std::move(other.bytes)), budget_(std::move(other.budget_)), size_(other.size_) {}
  ArrivingFrame& operator=(ArrivingFrame&&) = delete;

  std::string bytes;
  size_t size() const { return size_; }
  bool complete() const { return bytes.size() == size_; }

 private:
  std::shared_ptr<FrameBudget> budget_;
  const size_t size_;
};

// Not thread-safe.
class FrameAssembly {
 public:
  // The sender interleaves two frames; twice as many may be begun.
  static constexpr size_t kMaxPartialFrames = 4;
  // Longer than any sender waits.
  static constexpr TimeMs kMaxPatienceMs = 10 * 60 * 1000;

  FrameAssembly(size_t max_frame_bytes, std::shared_ptr<FrameBudget> budget)
      : max_frame_bytes_(max_frame_bytes), budget_(std::move(budget)) {}

  struct Step {
    uint64_t id = 0;
    std::optional<ArrivingFrame> frame;      // complete now
    std::optional<core::Admission> refusal;  // or not wanted: its rest will be left out
  };
  // INVALID_ARGUMENT for records that no sender makes: the stream is of no use then. `now_ms`
  // counts from any point.
  StatusOr<Step> take(ReceivedRecord received, TimeMs now_ms);
  // Forgets what senders no longer wait for.
  void drop_late(TimeMs now_ms);
  size_t partial() const { return partial_.size(); }

 private:
  struct Partial {
    ArrivingFrame frame;
    TimeMs late_at_ms;
  };
  StatusOr<Step> begin(const ReceivedRecord& received, TimeMs now_ms);
  StatusOr<Step> go_on(const ReceivedRecord& received, TimeMs now_ms);
  bool is_late(const Record& record, TimeMs now_ms);
  static void append(const ReceivedRecord& received, std::string* bytes);

  const size_t max_frame_bytes_;
  const std::shared_ptr<FrameBudget> budget_;
  std::map<uint64_t, Partial> partial_;
  uint64_t last_id_ = 0;
  // The smallest difference of the two clocks that a record showed: the quickest way here.
  std::optional<TimeMs> clock_difference_ms_;
};

}  // namespace tessera::net
