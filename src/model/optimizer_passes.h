// The passes over memory that optimizers are made of, each on the CPU (all of torch's threads) or
// on CUDA (the current stream), behind one interface.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/kernels/optimizer.h"

namespace tessera::model {

// What a step reads and writes: flat vectors of the stage.
struct StepTensors {
  at::Tensor masters;
  at::Tensor gradient;
  at::Tensor compute_weights;  // fp32 or bf16
};

// The memory of flat compute weights, as the one type that it is.
struct WeightPointers {
  float* as_float = nullptr;
  uint16_t* as_bfloat16 = nullptr;
};
WeightPointers weight_pointers(const at::Tensor& compute_weights);

// The norm of the gradient and what follows from it, in the device's memory. Used by one thread.
class NormPass {
 public:
  NormPass(int64_t count, const at::Device& device);

  Status enqueue(const at::Tensor& gradient, uint32_t microbatches, double clip_norm);
  // In the device's memory, valid for what is enqueued from then on until the next enqueue().
  const kernels::GradientNorm* result() const;
  // Waits for the last enqueue(), not for anything enqueued after it.
  kernels::GradientNorm wait();

 private:
  at::Tensor partials_;
  at::Tensor result_;
  at::Tensor host_result_;           // pinned
  std::optional<c10::Event> ready_;  // CUDA only
};

// Adam's step over some segments of the flat vector. Used by one thread.
class AdamPass {
 public:
  AdamPass(const std::vector<kernels::OptimizerSegment>& segments, const at::Device& device);

  Status enqueue(const StepTensors& tensors, const at::Tensor& first_moment,
                 const at::Tensor& second_moment, const kernels::AdamConstants& constants,
                 const kernels::GradientNorm* norm) const;

 private:
  int64_t chunk_count_ = 0;
  at::Tensor chunks_;  // bytes
};

}  // namespace tessera::model
