// A stage's gradient accumulator on one device: a tensor for each leaf of the weights, taken when
// its gradient is first written in a step and given back after the optimizer's step. While the
// activations of a forward pass are there the gradients are not, and the other way round.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/optimizer_passes.h"
#include "model/stage_function.h"
#include "model/trunk.h"

namespace tessera::model {

// Used by one thread.
class LeafGradients final : public GradientTargets {
 public:
  // `leaves`: of any version of the weights, which tile the flat vector. `keeps`: memory once taken
  // stays (a CPU, where giving it back costs page faults in every step).
  LeafGradients(const std::vector<StageWeights::Leaf>& leaves, const at::Device& device, bool keeps);

  // Before each backward pass; `accumulate`: it adds to what is there, else it overwrites it.
  void begin_pass(bool accumulate) { accumulate_ = accumulate; }
  void begin(size_t) override {}
  void end(size_t) override {}
  GradientTarget target(const at::Tensor& weight) override;

  // Offsets in the flat vector.
  const std::vector<int64_t>& begins() const { return begins_; }
  // All of them; what was not written yet has memory with any content.
  const GradientPieces& pieces();
  // After the optimizer's step. What is enqueued until then still reads them (memory is given on in
  // the order of the stream).
  void release();

 private:
  at::Tensor& piece(size_t index);

  const at::Device device_;
  const bool keeps_;
  bool accumulate_ = false;
  std::vector<int64_t> begins_, counts_;
  GradientPieces pieces_;  // undefined: not taken
};

}  // namespace tessera::model
