// The local optimizer of one worker in a box of several: masters and moments of its shard, its part of every step.
//
// The norm is that of the whole box: each worker's sum of squares goes to all, who add them up in the same order. AdamW and
// NAdam then go value by value. Muon needs whole matrices: momenta are updated slice by slice and gathered unit by unit,
// each matrix is orthogonalised by one worker and sent to all, and everybody applies its slice of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/box_group.h"
#include "model/muon.h"
#include "model/optimizer_parts.h"
#include "model/optimizer_passes.h"
#include "model/shard_layout.h"
#include "model/sharded_gradients.h"
#include "model/sharded_weights.h"
#include "tessera/base/status.h"

namespace tessera::model {

// Used by the worker's thread. Throws what torch throws, and StatusException.
class ShardedOptimizer {
 public:
  ShardedOptimizer(const core::TrainingSpec& training, const ShardLayout& layout, std::shared_ptr<const BoxGroup> group,
                   const ShardedGradients& gradients, const at::TensorOptions& compute);

  // One step with the mean of `gradients`, which are reduced; writes a version of `weights` and publishes it. The answer is
  // the norm before clipping. DATA_LOSS if it is not finite: nothing changes then.
  StatusOr<double> step(const ShardedGradients& gradients, double learning_rate, ShardedWeights* weights);
  // A version of the masters as they are.
  void publish(ShardedWeights* weights) const;

  // The shard: [layout.shard_count()] fp32. Whoever writes to the masters publishes them.
  const at::Tensor& masters() const { return masters_; }
  const at::Tensor& first_moment() const { return first_moment_; }
  const at::Tensor& second_moment() const { return second_moment_; }
  uint64_t steps() const { return steps_; }
  void set_steps(uint64_t steps) { steps_ = steps; }

 private:
  // Of one unit.
  struct Part {
    std::unique_ptr<AdamPass> adam;
    struct Piece {
      int64_t offset = 0;  // in the slice
      int64_t count = 0;
      float step = 0;      // learning rate 1
      at::Tensor place;    // [1] int64: offset, on the device
    };
    std::vector<Piece> muon;  // of Muon's matrices, in the own slice
    struct Matrix {
      int64_t offset = 0;  // in the unit
      int64_t rows = 0;
      int64_t columns = 0;
      uint32_t owner = 0;
    };
    std::vector<Matrix> matrices;
  };
  StepTensors tensors_of(size_t unit, const ShardedGradients& gradients, const ShardedWeights& weights) const;
  at::Tensor shard_of(const at::Tensor& shard, size_t unit) const;
  at::Tensor sums_of_box(const at::Tensor& sums) const;
  void step_muon(size_t unit, const StepTensors& tensors, double learning_rate, const kernels::GradientNorm* norm);
  void orthogonalise(const Part& part, const at::Tensor& updates);
  Part make_part(size_t unit, std::vector<double>* loads) const;
  uint32_t own_slice() const { return layout_.shards() == 1 ? 0 : group_->rank(); }

  const core::TrainingSpec training_;
  const ShardLayout layout_;
  const std::shared_ptr<const BoxGroup> group_;
  const at::TensorOptions compute_;
  AdamSchedule schedule_;
  at::Tensor masters_, first_moment_, second_moment_;
  NormPass norm_;
  std::vector<Part> parts_;
  uint64_t steps_ = 0;
};

}  // namespace tessera::model
