// The local optimizer of a stage over its flat vectors: decoupled weight decay on matrices, none on
// vectors, and clipping by the norm over the whole stage.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/optimizer_passes.h"
#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Owns the moments, flat and fp32 like everything here. Used by one thread. torch's exceptions
// leave it; the engine turns them into a Status.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One step on `masters` with the mean of `gradient`, the sum of so many microbatches', which is
  // only read.
  // The same pass writes the masters as they then are to `compute_weights` (flat, fp32 or bf16; not
  // the weights that microbatches in flight hold). Returns the mean gradient's norm before
  // clipping.
  // On CUDA everything is in order of the current stream. The call waits for the norm and no
  // longer: the update is then still under way, and what the caller enqueues next comes after it.
  // DATA_LOSS if the norm is not finite: masters and moments are then as before, and the compute
  // weights hold the masters.
  StatusOr<double> step(const at::Tensor& masters, const GradientPieces& gradient,
                        uint32_t microbatches, double learning_rate,
                        const at::Tensor& compute_weights);
  StatusOr<double> step(const at::Tensor& masters, const at::Tensor& flat_gradient,
                        uint32_t microbatches, double learning_rate,
                        const at::Tensor& compute_weights) {
    return step(masters, GradientPieces{flat_gradient}, microbatches, learning_rate,
                compute_weights);
  }

  const at::Tensor& first_moment() const { return first_moment_; }
  const at::Tensor& second_moment() const { return second_moment_; }
  uint64_t steps() const { return steps_; }
  void restore(const at::Tensor& first_moment, const at::Tensor& second_moment, uint64_t steps);

 protected:
  Optimizer(const core::TrainingSpec& training, int64_t count, const std::vector<int64_t>& pieces,
            const at::Device& device);

  // Enqueues the update of step number `step` (from 1), which must do nothing but write the compute
  // weights where `norm` (in the device's memory) says that the gradient is not finite.
  virtual Status update(const StepTensors& tensors, const kernels::GradientNorm* norm,
                        uint64_t step, double learning_rate) = 0;

  const core::TrainingSpec training_;
  at::Tensor first_moment_;
  at::Tensor second_moment_;

 private:
  PieceTable pieces_;
  NormPass norm_;
  uint64_t steps_ = 0;
};

// Of training.optimizer, with moments of zero, for the stage of `layout`. `pieces`: where the pieces
// of the gradient begin in the flat vector, from 0 on, ascending; none: it is flat.
std::unique_ptr<Optimizer> make_optimizer(const core::TrainingSpec& training,
                                          const std::vector<ports::TensorLayout>& layout,
                                          const at::Device& device,
                                          const std::vector<int64_t>& pieces = {});

}  // namespace tessera::model
