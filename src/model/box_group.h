// The group of a box's workers, for code that works with tensors and lets failures be exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "tessera/ports/collective.h"

namespace tessera::model {

using Pending = std::unique_ptr<ports::PendingCollective>;

// One worker's end. Tensors are contiguous, fp32, fp64 or bf16, on the worker's device; the caller keeps them until the
// operation was waited for. Throws StatusException.
class BoxGroup {
 public:
  explicit BoxGroup(std::shared_ptr<ports::CollectiveGroup> group) : group_(std::move(group)) {}

  uint32_t rank() const { return group_->rank(); }
  uint32_t size() const { return group_->size(); }
  Pending all_reduce(const at::Tensor& tensor) const;
  Pending reduce_scatter(const at::Tensor& in, const at::Tensor& out) const;
  Pending all_gather(const at::Tensor& in, const at::Tensor& out) const;
  Pending broadcast(const at::Tensor& tensor, uint32_t root) const;

 private:
  const std::shared_ptr<ports::CollectiveGroup> group_;
};

// Waits and forgets; nothing for null.
void finish(Pending* pending);

}  // namespace tessera::model
