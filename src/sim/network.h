// The simulated network: when a message arrives, if it does. Every node has a link up and one down,
// which messages queue for; between two nodes lie latency and jitter. A node that is cut off hears,
// and is heard by, only those that are cut off in the same way.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "event_queue.h"
#include "tessera/base/prng.h"
#include "tessera/config/scenario.h"

namespace tessera::sim {

class Network {
 public:
  Network(const config::SimSpec& sim, Prng* random);

  void add_node();
  // When `bytes` of a message that is sent now are at the receiver's link. It waits for what the link itself holds, not for
  // the frames that are still in the sender's queues.
  TimeUs arrival(TimeUs now, uint32_t from, uint64_t bytes);
  // When a frame's are. Frames leave one after the other; nothing: it was given up before it had left, and took only the
  // time until then.
  std::optional<TimeUs> frame_arrival(TimeUs now, uint32_t from, uint64_t bytes, TimeUs until);
  // When bytes that are at the link now are through it.
  TimeUs delivery(TimeUs now, uint32_t to, uint64_t bytes);
  // One way, for what has no size.
  TimeUs latency();
  // For bulk in both directions that gives way to messages: does not occupy the links.
  TimeUs bulk_time(uint64_t bytes_up, uint64_t bytes_down);

  bool reach(uint32_t a, uint32_t b) const { return cuts_[a] == cuts_[b]; }
  bool is_cut(uint32_t node) const { return cuts_[node] != 0; }
  void cut(uint32_t node, uint64_t mask) { cuts_[node] |= mask; }
  void mend(uint32_t node, uint64_t mask) { cuts_[node] &= ~mask; }

 private:
  const TimeUs latency_us_;
  const uint64_t jitter_us_;
  const double up_us_per_byte_;
  const double down_us_per_byte_;
  Prng* const random_;
  std::vector<TimeUs> up_free_;
  std::vector<TimeUs> down_free_;
  std::vector<uint64_t> cuts_;
};

}  // namespace tessera::sim
