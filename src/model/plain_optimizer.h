// The optimizers in torch's own operators, as a Python program would run them: what ours are
// measured against. For tessera-bench alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Used by one thread.
class PlainOptimizer {
 public:
  PlainOptimizer(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
                 const at::Tensor& masters);

  // Norm, clipping, update and the cast to the compute weights. `gradient` may be changed.
  void step(const at::Tensor& masters, const at::Tensor& gradient, double learning_rate,
            const at::Tensor& compute_weights);

 private:
  struct Slice {
    at::Tensor values, gradient, first, second;
  };
  Slice slice(const ports::TensorLayout& tensor, const at::Tensor& masters,
              const at::Tensor& gradient) const;
  void adamw(const std::vector<Slice>& slices, double weight_decay, double learning_rate,
             const at::Tensor& divisor);
  void nadam(const Slice& slice, double weight_decay, double learning_rate, double scale);
  void muon(const Slice& slice, double learning_rate, double scale);

  const core::TrainingSpec training_;
  const std::vector<ports::TensorLayout> layout_;
  at::Tensor first_moment_, second_moment_;
  int64_t step_ = 0;
};

}  // namespace tessera::model
