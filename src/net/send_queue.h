// Frames that wait for a stream, cut into chunks: backwards before forwards, each in its order.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "net/stream_record.h"

namespace tessera::net {

struct QueuedFrame {
  uint64_t id = 0;
  std::shared_ptr<const std::string> bytes;
  uint64_t sent_at_ms = 0;
  uint32_t patience_ms = 0;
};

// One record to send: its header, and where its content is.
struct OutgoingChunk {
  Record record;
  std::shared_ptr<const std::string> frame;
  size_t offset = 0;
  size_t size = 0;
};

// A plain value with limits. Not thread-safe.
class SendQueue {
 public:
  struct Limits {
    size_t frames = 1024;
    size_t bytes = size_t{1} << 30;  // of frames not wholly sent
  };
  explicit SendQueue(Limits limits) : limits_(limits) {}

  // False if it is full. An empty queue takes one frame of any size.
  bool push(QueuedFrame frame, bool backward);
  // The next record: what cancels a frame first, then a chunk of the first backward, else of the
  // first forward.
  std::optional<OutgoingChunk> next();
  // Forgets a frame; if a part of it is sent already, the receiver is told so.
  void remove(uint64_t id);
  void clear();
  bool empty() const { return backwards_.empty() && forwards_.empty() && cancelled_.empty(); }

 private:
  struct Entry {
    QueuedFrame frame;
    bool begun = false;
    size_t offset = 0;
  };
  bool remove_from(std::deque<Entry>& queue, uint64_t id);

  const Limits limits_;
  std::deque<Entry> backwards_;
  std::deque<Entry> forwards_;
  std::deque<uint64_t> cancelled_;  // as many as frames begun, so two at most in between
  size_t bytes_ = 0;
};

}  // namespace tessera::net
