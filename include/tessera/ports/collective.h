// The workers of one box as a group: what they compute together on the memory of their devices. The product's groups are
// NCCL's on GPUs and gloo's on CPUs (src/collective); tests have one that fails on purpose.
#pragma once

#include <cstdint>
#include <memory>

#include "tessera/base/status.h"

namespace tessera::ports {

enum class NumberType : uint8_t { kFloat, kDouble, kBFloat16 };

// Memory of the worker's device. The caller keeps it until the operation was waited for.
struct Numbers {
  void* data = nullptr;
  uint64_t count = 0;
  NumberType type = NumberType::kFloat;
};

// An operation under way. Waited for when destroyed, if not before.
class PendingCollective {
 public:
  virtual ~PendingCollective() = default;
  // On a GPU: what the caller's stream does next comes after the operation; the host does not wait. On a CPU: until it is
  // done. INTERNAL if it failed or a worker did not take part in time; the group is of no use then.
  virtual Status wait() = 0;
};
using PendingResult = StatusOr<std::unique_ptr<PendingCollective>>;

// One worker's end of the group. All workers call the same operations in the same order, each from its own thread; an
// operation begins after what the caller's stream has before it. Every operation ends, or fails, in a bounded time.
class CollectiveGroup {
 public:
  virtual ~CollectiveGroup() = default;
  virtual uint32_t rank() const = 0;
  virtual uint32_t size() const = 0;

  // The sum over the workers, in place; the same bits for all.
  virtual PendingResult all_reduce(const Numbers& numbers) = 0;
  // The sum over the workers of `in` [size * out.count]: worker i gets part i. `out` may be part rank() of `in`.
  virtual PendingResult reduce_scatter(const Numbers& in, const Numbers& out) = 0;
  // Everybody's `in`, by rank, into `out` [size * in.count]. `in` may be part rank() of `out`.
  virtual PendingResult all_gather(const Numbers& in, const Numbers& out) = 0;
  // `numbers` of worker `root` for all.
  virtual PendingResult broadcast(const Numbers& numbers, uint32_t root) = 0;
  // Returns when every worker has called it and all that was enqueued before on the devices is done.
  virtual Status barrier() = 0;

  // Any thread: everything under way fails now, as far as the implementation can; nothing works afterwards.
  virtual void abort() = 0;
};

}  // namespace tessera::ports
