#include "net/send_queue.h"

#include <algorithm>
#include <utility>

namespace tessera::net {

bool SendQueue::push(QueuedFrame frame, bool backward) {
  const size_t frames = backwards_.size() + forwards_.size();
  const size_t size = frame.bytes->size();
  if (frames >= limits_.frames) return false;
  if (frames > 0 && bytes_ + size > limits_.bytes) return false;
  bytes_ += size;
  (backward ? backwards_ : forwards_).push_back({std::move(frame)});
  return true;
}

std::optional<OutgoingChunk> SendQueue::next() {
  OutgoingChunk chunk;
  if (!cancelled_.empty()) {
    chunk.record.kind = RecordKind::kCancel;
    chunk.record.id = cancelled_.front();
    cancelled_.pop_front();
    return chunk;
  }
  std::deque<Entry>& queue = backwards_.empty() ? forwards_ : backwards_;
  if (queue.empty()) return std::nullopt;
  Entry& entry = queue.front();
  const size_t total = entry.frame.bytes->size();
  chunk.frame = entry.frame.bytes;
  chunk.offset = entry.offset;
  chunk.size = std::min(total - entry.offset, kChunkBytes);
  chunk.record.id = entry.frame.id;
  if (entry.begun) {
    chunk.record.kind = RecordKind::kChunk;
    chunk.record.position = entry.offset;
  } else {
    chunk.record.kind = RecordKind::kBegin;
    chunk.record.position = total;
    chunk.record.sent_at_ms = entry.frame.sent_at_ms;
    chunk.record.patience_ms = entry.frame.patience_ms;
    entry.begun = true;
  }
  entry.offset += chunk.size;
  if (entry.offset == total) {
    bytes_ -= total;
    queue.pop_front();
  }
  return chunk;
}

void SendQueue::remove(uint64_t id) {
  if (!remove_from(backwards_, id)) remove_from(forwards_, id);
}

bool SendQueue::remove_from(std::deque<Entry>& queue, uint64_t id) {
  const auto found = std::find_if(queue.begin(), queue.end(),
                                  [id](const Entry& entry) { return entry.frame.id == id; });
  if (found == queue.end()) return false;
  if (found->begun) cancelled_.push_back(id);
  bytes_ -= found->frame.bytes->size();
  queue.erase(found);
  return true;
}

void SendQueue::clear() {
  backwards_.clear();
  forwards_.clear();
  cancelled_.clear();
  bytes_ = 0;
}

}  // namespace tessera::net
