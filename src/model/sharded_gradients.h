// One worker's gradient accumulator in a box of several.
//
// Stages 0 and 1 of ZeRO keep a whole one; the sum over the workers' accumulators is the box's. It is reduced when the last
// microbatch of a step goes backward, unit by unit while the pass goes on: to everybody (stage 0), or each slice to its
// owner (stage 1). Should another microbatch follow all the same, the accumulators are first made to add up again.
// Stages 2 and 3 keep a shard. A unit's gradients are computed into one of two buckets, and its sum is scattered over the
// workers while the next unit is computed into the other.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/box_group.h"
#include "model/shard_layout.h"
#include "model/trunk.h"
#include "tessera/kernels/optimizer.h"

namespace tessera::model {

// Used by the worker's thread.
class ShardedGradients final : public GradientTargets {
 public:
  ShardedGradients(const ShardLayout& layout, uint32_t zero_stage, std::shared_ptr<const BoxGroup> group,
                   const at::Device& device);

  // Around each backward pass that adds to the accumulator. `last`: no other is expected before the optimizer's step.
  void begin_microbatch(bool last);
  void finish_microbatch();
  void begin(size_t unit) override;
  void end(size_t unit) override;
  GradientTarget target(const at::Tensor& weight) override;

  // The sum over the workers is then in slice(): of the worker's own slice of the unit (stage 0: of the whole unit).
  void reduce();
  at::Tensor slice(size_t unit) const;
  // All slices at once: where they lie in one tensor.
  std::vector<kernels::OptimizerSegment> segments() const;
  const at::Tensor& accumulator() const { return accumulator_; }
  uint32_t microbatches() const { return microbatches_; }

  void clear() { microbatches_ = 0; }
  // slice() of every unit is about to be set by the caller, as that of `microbatches`.
  void restore(uint32_t microbatches);

  int64_t accumulator_bytes() const { return static_cast<int64_t>(accumulator_.nbytes()); }
  int64_t bucket_bytes() const;

 private:
  struct Bucket {
    at::Tensor memory;
    at::Tensor sum;     // of the own slice, to be added to the accumulator; undefined if it went there
    at::Tensor target;  // the accumulator's slice
    Pending scatter;
  };
  bool is_whole() const { return zero_stage_ <= 1; }
  uint32_t own_slice() const { return layout_.shards() == 1 ? 0 : group_->rank(); }
  Pending reduce_unit(size_t unit) const;
  void spread();
  static void collect(Bucket* bucket);

  const ShardLayout layout_;
  const uint32_t zero_stage_;
  const std::shared_ptr<const BoxGroup> group_;
  at::Tensor accumulator_;  // fp32, [padded count], or the shard
  uint32_t microbatches_ = 0;
  bool reducing_ = false;   // this backward pass reduces the accumulator on its way
  bool reduced_ = false;
  std::vector<Pending> under_way_;
  std::array<Bucket, 2> buckets_;
  size_t next_bucket_ = 0;
  Bucket* bucket_ = nullptr;  // of the unit that was begun
  int64_t first_ = 0;         // the bucket's first value is of the weight at this offset of its storage
};

}  // namespace tessera::model
