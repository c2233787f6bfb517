// A stage on its device: masters, gradient, optimizer and the versions of the compute weights.
// Tensors in and out; the engine adds the wire, the bookkeeping of microbatches and the errors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "model/optimizer.h"
#include "model/stage_pass.h"
#include "tessera/base/status.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

// Used by one thread. Throws what torch throws.
class DeviceStage {
 public:
  // masters: [count] fp32 on the device; taken over.
  DeviceStage(const core::RunSpec& spec, StageIndex stage, const at::Device& device, PassKind kind,
              at::Tensor masters);

  // ids [B, T + 1] int64; boundary [B, T, r] fp32, undefined at the head.
  PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary);
  // Calls `ready` with the input's gradient (undefined at the head) before the weight gradients
  // that it does not need are begun. A failure on the way loses what was accumulated: it may be
  // half added.
  void backward(std::unique_ptr<PassState> state, const at::Tensor& outer, bool accumulate,
                const std::function<void(const at::Tensor&)>& ready);
  // One optimizer step with the mean of what was accumulated, at least one microbatch; the answer
  // is the gradient's norm. A gradient that is not finite is dropped, with DATA_LOSS.
  StatusOr<double> step(double learning_rate);

  const std::shared_ptr<const StageWeights>& weights() const { return weights_; }
  const at::Tensor& masters() const { return masters_; }
  const at::Tensor& accumulator() const { return accumulator_; }
  uint32_t accumulated() const { return accumulated_; }
  const Optimizer& optimizer() const { return *optimizer_; }

  void set_masters(const at::Tensor& masters);
  // `gradient`: undefined if `microbatches` is 0.
  void restore(const at::Tensor& masters, const at::Tensor& first_moment,
               const at::Tensor& second_moment, uint64_t steps, const at::Tensor& gradient,
               uint32_t microbatches);

 private:
  // A new version of the compute weights. The old one lives on in the microbatches that use it.
  void renew_weights();
  at::Tensor flat_weights() const;
  void publish(const at::Tensor& flat);

  const core::RunSpec spec_;
  const StageIndex stage_;
  const at::TensorOptions compute_;
  std::unique_ptr<StagePass> pass_;
  at::Tensor masters_;      // [count] fp32
  at::Tensor accumulator_;  // [count] fp32: the sum of the microbatches' gradients, if there are any
  uint32_t accumulated_ = 0;
  const std::unique_ptr<Optimizer> optimizer_;
  std::shared_ptr<const StageWeights> weights_;
};

}  // namespace tessera::model
