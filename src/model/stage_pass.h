// One forward and one backward through a stage, on the device: what the engine does between the
// wire's decoder and its encoder. Two ways: by autograd (any device, any boundary, the reference),
// and by hand (for GPUs).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "model/stage_function.h"
#include "model/trunk.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

struct PassInput {
  std::shared_ptr<const StageWeights> weights;
  at::Tensor ids;       // [B, T + 1] int64
  at::Tensor boundary;  // [B, T, r] fp32; undefined at the head
};

// What backward() needs of one forward(); it holds the weights that were used.
class PassState {
 public:
  virtual ~PassState() = default;
};

struct PassOutput {
  at::Tensor wire;  // below the tail: what the wire encodes, [B, T, r] (StageOutput::wire); fp32 or
                    // the compute type
  at::Tensor loss;  // at the tail: the mean loss, one number
  std::unique_ptr<PassState> state;
};

// Used by one thread. Throws what torch throws.
class StagePass {
 public:
  virtual ~StagePass() = default;
  virtual PassOutput forward(const PassInput& input) = 0;
  // outer: the gradient of the boundary tensor, [B, T, r] of any type; undefined at the tail.
  // Returns that of the input, contiguous, fp32 or the compute type; undefined at the head. Weight gradients go to `sink`; those that the result does
  // not need may be left there deferred: the caller must flush it.
  virtual at::Tensor backward(std::unique_ptr<PassState> state, const at::Tensor& outer,
                              GradientSink* sink) = 0;
};

std::unique_ptr<StagePass> make_autograd_pass(const core::RunSpec& spec, StageIndex stage,
                                              const at::TensorOptions& compute);
struct FusedPassOptions {
  // Weight gradients that the input's gradient does not need are left to the sink's flush().
  bool defer = true;
  // Of the microbatch that this pass has: b of its B sequences are b / B. The losses of all parts add up to the mean.
  double loss_share = 1;
};
// Not for the iota boundary, whose first and last layers are others. Recomputation and determinism are those of
// spec.training, the batch is training.microbatch_size.
std::unique_ptr<StagePass> make_fused_pass(const core::RunSpec& spec, StageIndex stage,
                                           const at::TensorOptions& compute,
                                           const FusedPassOptions& options = {});

// Numbers that the fused pass may read behind a stage's flat compute weights: the vocabulary is
// padded to whole pieces of 128, and what is read there must be zeros.
int64_t weight_padding(const core::RunSpec& spec, StageIndex stage);

}  // namespace tessera::model
