// Many calls of one kind, a few at a time, each tried again until it succeeds, fails for good, or
// the deadline is over.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "tessera/base/clock.h"
#include "tessera/base/status.h"

namespace tessera::net {

struct RetryPolicy {
  size_t parallel = 4;
  uint32_t call_timeout_ms = 30000;
  uint32_t min_backoff_ms = 50;
  uint32_t max_backoff_ms = 5000;
};

// One call of the batch. Sent again, it is signed again.
struct BatchCall {
  // Starts the call; `done` is called once, from any thread.
  std::function<void(uint32_t timeout_ms, std::function<void(StatusOr<grpc::ByteBuffer>)> done)>
      send;
  // Takes the answer, in the thread of run_batch(). An error ends the batch.
  std::function<Status(const grpc::ByteBuffer& answer)> take;
};

// `next` gives the next call, or nothing if there is none now (an answer under way may make more).
// Blocks until all are done, also on failure: no callback comes after it. Returns the first error
// that is for good, or the last one that could have been tried again when `deadline_ms` (monotonic)
// came.
Status run_batch(const RetryPolicy& policy, TimeMs deadline_ms,
                 const std::function<std::optional<BatchCall>()>& next);

}  // namespace tessera::net
