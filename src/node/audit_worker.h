// A miner's thread that stores what audits need. It stands behind everything else: one call is under way at a time, its queue
// is short, and what does not fit is dropped and named in the next commitment. Order matters: a commitment is stored after
// all payloads that came before it, so that whoever knows the commitment can have them.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <variant>
#include <vector>

#include "tessera/base/bounded_queue.h"
#include "tessera/core/miner_events.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Thread-safe.
class AuditWorker {
 public:
  // `linger`: so long payloads wait for others that are stored with them, unless a commitment comes.
  AuditWorker(ports::BlobLink& blobs, std::function<void(core::MinerEvent)> post,
              std::chrono::milliseconds linger = std::chrono::milliseconds(2000));
  ~AuditWorker();

  void keep(const core::BoundaryPayload& payload);
  void store(core::miner_effect::StoreSegment segment);
  uint64_t stored() const { return stored_; }
  uint64_t dropped() const { return dropped_; }

 private:
  // A payload that had no room is only its name.
  using Item = std::variant<core::BoundaryPayload, Digest, core::miner_effect::StoreSegment>;

  void loop();
  void wait(core::BoundaryPayload payload);
  void flush();

  ports::BlobLink& blobs_;
  const std::function<void(core::MinerEvent)> post_;
  const std::chrono::milliseconds linger_;
  BoundedQueue<Item> items_;
  std::atomic<size_t> queued_bytes_{0};
  std::atomic<uint64_t> stored_{0};
  std::atomic<uint64_t> dropped_{0};
  std::atomic<int> unnamed_{0};  // commitments to come that can't name all that was dropped
  // The thread's own.
  std::vector<core::BoundaryPayload> waiting_;
  size_t waiting_bytes_ = 0;
  std::chrono::steady_clock::time_point flush_at_;  // if any wait
  std::vector<Digest> names_dropped_;  // since the last commitment
  std::jthread thread_;
};

}  // namespace tessera::node
