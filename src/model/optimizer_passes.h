// The passes over memory that optimizers are made of, each on the CPU (all of torch's threads) or
// on CUDA (the current stream), behind one interface.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/kernels/optimizer.h"

namespace tessera::model {

// The accumulated gradient as fp32 tensors that tile the flat vector, in its order. A single one is
// the flat gradient.
using GradientPieces = std::vector<at::Tensor>;

// Keeps the places of a gradient's pieces in the device's memory. Used by one thread.
class PieceTable {
 public:
  PieceTable(size_t pieces, const at::Device& device);
  // In order of the current stream. The pieces of the call before must have been read (the host has
  // waited for a step's norm since).
  kernels::GradientPlaces set(const GradientPieces& pieces);

 private:
  at::Tensor host_, table_;  // [pieces] int64: addresses
};

// What a step reads and writes: flat vectors of the stage.
struct StepTensors {
  at::Tensor masters;
  kernels::GradientPlaces gradient;
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
  // Of the values in `segments`, the gradient in pieces that begin at `pieces` or flat.
  NormPass(const std::vector<kernels::OptimizerSegment>& segments, const std::vector<int64_t>& pieces,
           const at::Device& device);

  // Sums of squares [n], double, on the device, to those whose sum is the norm's square.
  using Combine = std::function<at::Tensor(const at::Tensor& sums)>;
  // `combine`: where others have the rest of the gradient; none: all is here.
  Status enqueue(const kernels::GradientPlaces& gradient, uint32_t microbatches, double clip_norm,
                 const Combine& combine = {});
  // In the device's memory, valid for what is enqueued from then on until the next enqueue().
  const kernels::GradientNorm* result() const;
  // Waits for the last enqueue(), not for anything enqueued after it.
  kernels::GradientNorm wait();

 private:
  const at::Tensor chunks_;  // bytes
  at::Tensor partials_;
  at::Tensor sums_;  // what result_ is made of
  at::Tensor result_;
  at::Tensor host_result_;           // pinned
  std::optional<c10::Event> ready_;  // CUDA only
};

// Adam's step over some segments of the flat vector. Used by one thread.
class AdamPass {
 public:
  AdamPass(const std::vector<kernels::OptimizerSegment>& segments,
           const std::vector<int64_t>& pieces, const at::Device& device);

  Status enqueue(const StepTensors& tensors, const at::Tensor& first_moment,
                 const at::Tensor& second_moment, const kernels::AdamConstants& constants,
                 const kernels::GradientNorm* norm) const;

 private:
  const at::Tensor chunks_;  // bytes
};

}  // namespace tessera::model
