// The frames of one stream that are not wholly there yet.
//
// What a sender announces is not believed: each byte is taken off a budget that all streams of the
// server share before it is kept, and what its sender has given up is dropped.
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

// A frame, or a part of it, and the budget it holds: that of the bytes that are there.
class ArrivingFrame {
 public:
  ArrivingFrame(std::shared_ptr<FrameBudget> budget, size_t size);
  ~ArrivingFrame();
  ArrivingFrame(ArrivingFrame&& other) noexcept;
  ArrivingFrame& operator=(ArrivingFrame&&) = delete;

  // False if the budget has no room; nothing is kept then.
  bool append(const ReceivedRecord& received);
  bool complete() const { return bytes.size() == size_; }
  size_t missing() const { return size_ - bytes.size(); }

  std::string bytes;

 private:
  std::shared_ptr<FrameBudget> budget_;
  const size_t size_;
  size_t held_ = 0;
};

// Not thread-safe.
class FrameAssembly {
 public:
  // The sender interleaves two frames; twice as many may be begun.
  static constexpr size_t kMaxPartialFrames = 4;
  // A frame that takes longer is dropped, whatever its sender says.
  static constexpr TimeMs kMaxPatienceMs = 2 * 60 * 1000;

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

  const size_t max_frame_bytes_;
  const std::shared_ptr<FrameBudget> budget_;
  std::map<uint64_t, Partial> partial_;
  uint64_t last_id_ = 0;
  // The smallest difference of the two clocks that a record showed: the quickest way here.
  std::optional<TimeMs> clock_difference_ms_;
};

}  // namespace tessera::net
