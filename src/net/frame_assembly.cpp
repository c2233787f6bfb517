#include "net/frame_assembly.h"

#include <algorithm>
#include <utility>

namespace tessera::net {
namespace {

// More is reserved only when so much has arrived: a small message must not cost much.
constexpr size_t kFirstReserveBytes = size_t{16} << 20;

Status abuse(const char* what, uint64_t id) {
  return invalid_argument("frame {} of the peer stream: {}; use the same version of Tessera on "
                          "both sides",
                          id, what);
}

}  // namespace

bool FrameBudget::take(size_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  int64_t left = left_.load();
  while (left >= wanted) {
    if (left_.compare_exchange_weak(left, left - wanted)) return true;
  }
  return false;
}

ArrivingFrame::ArrivingFrame(std::shared_ptr<FrameBudget> budget, size_t size)
    : budget_(std::move(budget)), size_(size) {
  bytes.reserve(std::min(size, kFirstReserveBytes));
}

ArrivingFrame::~ArrivingFrame() {
  if (budget_ != nullptr) budget_->give_back(held_);
}

ArrivingFrame::ArrivingFrame(ArrivingFrame&& other) noexcept
    : bytes(std::move(other.bytes)),
      budget_(std::move(other.budget_)),
      size_(other.size_),
      held_(other.held_) {}

bool ArrivingFrame::append(const ReceivedRecord& received) {
  if (!budget_->take(received.content_bytes)) return false;
  held_ += received.content_bytes;
  const size_t needed = bytes.size() + received.content_bytes;
  if (needed > bytes.capacity()) bytes.reserve(std::min(size_, 2 * needed));
  for (const grpc::Slice& slice : received.content) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return true;
}

StatusOr<FrameAssembly::Step> FrameAssembly::take(ReceivedRecord received, TimeMs now_ms) {
  const uint64_t id = received.record.id;
  switch (received.record.kind) {
    case RecordKind::kBegin:
      return begin(received, now_ms);
    case RecordKind::kChunk:
      return go_on(received, now_ms);
    case RecordKind::kCancel: {
      if (received.content_bytes > 0) return abuse("cancelled with content", id);
      partial_.erase(id);
      Step step;
      step.id = id;
      return step;
    }
    default:
      return abuse("a record for the other side", id);
  }
}

StatusOr<FrameAssembly::Step> FrameAssembly::begin(const ReceivedRecord& received, TimeMs now_ms) {
  const Record& record = received.record;
  if (record.id <= last_id_) return abuse("begun again", record.id);
  last_id_ = record.id;
  if (received.content_bytes > record.position) return abuse("longer than it said", record.id);
  if (received.content_bytes == 0 && record.position > 0) return abuse("an empty chunk", record.id);
  drop_late(now_ms);
  if (partial_.size() >= kMaxPartialFrames) return abuse("too many at once", record.id);
  Step step;
  step.id = record.id;
  if (record.position > max_frame_bytes_) {
    step.refusal = core::Admission::kCorrupt;
    return step;
  }
  if (is_late(record, now_ms)) {
    step.refusal = core::Admission::kFull;
    return step;
  }
  ArrivingFrame frame(budget_, record.position);
  if (!frame.append(received)) {
    step.refusal = core::Admission::kFull;
    return step;
  }
  if (frame.complete()) {
    step.frame.emplace(std::move(frame));
    return step;
  }
  const TimeMs patience_ms = std::min<TimeMs>(record.patience_ms, kMaxPatienceMs);
  partial_.emplace(record.id, Partial{std::move(frame), now_ms + patience_ms});
  return step;
}

StatusOr<FrameAssembly::Step> FrameAssembly::go_on(const ReceivedRecord& received,
                                                      TimeMs now_ms) {
  const Record& record = received.record;
  if (record.id > last_id_) return abuse("a chunk before its beginning", record.id);
  if (received.content_bytes == 0) return abuse("an empty chunk", record.id);
  Step step;
  step.id = record.id;
  const auto found = partial_.find(record.id);
  if (found == partial_.end()) return step;  // refused or given up: the sender learns of it later
  ArrivingFrame& frame = found->second.frame;
  if (record.position != frame.bytes.size()) return abuse("a chunk out of order", record.id);
  if (received.content_bytes > frame.missing()) return abuse("longer than it said", record.id);
  const bool late = found->second.late_at_ms < now_ms;
  if (late || !frame.append(received)) {
    step.refusal = core::Admission::kFull;
  } else if (!frame.complete()) {
    return step;
  } else {
    step.frame.emplace(std::move(frame));
  }
  partial_.erase(found);
  return step;
}

// A process that was stopped finds frames in its sockets that their senders have long given to
// somebody else. The clocks of the two sides differ by what the quickest record shows; a frame that
// took longer than its sender waits is late.
bool FrameAssembly::is_late(const Record& record, TimeMs now_ms) {
  constexpr uint64_t kFarAway = uint64_t{1} << 60;
  const TimeMs difference = now_ms - static_cast<TimeMs>(std::min(record.sent_at_ms, kFarAway));
  clock_difference_ms_ = std::min(clock_difference_ms_.value_or(difference), difference);
  return difference - *clock_difference_ms_ > static_cast<TimeMs>(record.patience_ms);
}

void FrameAssembly::drop_late(TimeMs now_ms) {
  std::erase_if(partial_, [&](const auto& entry) { return entry.second.late_at_ms < now_ms; });
}

}  // namespace tessera::net
