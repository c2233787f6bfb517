// AdamW over a stage's flat vector (Loshchilov & Hutter 2019, as torch.optim.AdamW computes it):
// decoupled weight decay on matrices, none on vectors, and clipping by the norm over the whole
// stage.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Owns the moments. Used by one thread.
class FlatAdamW {
 public:
  FlatAdamW(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
            const at::Device& device);

  // One step on `masters` with the mean gradient accumulator / microbatches; all flat fp32. The
  // accumulator is spent (its content is scaled on the way). Returns the mean gradient's norm
  // before clipping. DATA_LOSS if that is not finite: masters and moments are then as before.
  StatusOr<double> step(const at::Tensor& masters, const at::Tensor& accumulator,
                        uint32_t microbatches, double learning_rate);

  const at::Tensor& first_moment() const { return first_moment_; }
  const at::Tensor& second_moment() const { return second_moment_; }
  uint64_t steps() const { return steps_; }
  void restore(const at::Tensor& first_moment, const at::Tensor& second_moment, uint64_t steps);

 private:
  // Neighbouring tensors that are treated alike.
  struct Slice {
    int64_t offset = 0;
    int64_t count = 0;
    bool decays = false;
  };
  void update(bool decays, const at::Tensor& masters, const at::Tensor& accumulator,
              const at::Tensor& gradient_divisor, double learning_rate);

  core::TrainingSpec training_;
  std::vector<Slice> slices_;
  at::Tensor first_moment_;
  at::Tensor second_moment_;
  uint64_t steps_ = 0;
};

}  // namespace tessera::model
