// A stage on its device: masters, gradient, optimizer and the versions of the compute weights.
// Tensors in and out; the engine adds the wire, the bookkeeping of microbatches and the errors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "model/leaf_gradients.h"
#include "model/optimizer.h"
#include "model/stage_compute.h"
#include "model/stage_pass.h"
#include "tessera/base/status.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

// Used by one thread. Throws what torch throws.
class DeviceStage final : public StageCompute {
 public:
  // masters: [count] fp32 on the device; taken over.
  DeviceStage(const core::RunSpec& spec, StageIndex stage, const at::Device& device, PassKind kind,
              at::Tensor masters);

  PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary) override;
  void backward(std::unique_ptr<PassState> state, const at::Tensor& outer, bool accumulate,
                const std::function<void(const at::Tensor&)>& ready) override;
  StatusOr<double> step(double learning_rate) override;
  uint64_t weight_version() const override { return weights_->version; }
  uint32_t accumulated() const override { return accumulated_; }
  std::vector<float> read_masters() override;
  void write_masters(const std::vector<float>& values) override;
  core::LocalState read_state() override;
  void write_state(const core::LocalState& state) override;
  std::vector<core::WeightVersion> older_weights() override;

 private:
  // A new version of the compute weights. The old one lives on in the microbatches that use it.
  void renew_weights();
  at::Tensor flat_weights() const;
  void publish(const at::Tensor& flat);

  const core::RunSpec spec_;
  const StageIndex stage_;
  const at::TensorOptions compute_;
  std::unique_ptr<StagePass> pass_;
  at::Tensor masters_;  // [count] fp32
  std::shared_ptr<const StageWeights> weights_;
  std::map<uint64_t, std::weak_ptr<const StageWeights>> versions_;  // that microbatches in flight may still hold
  std::unique_ptr<LeafGradients> gradients_;  // the sum of the microbatches', if there are any
  uint32_t accumulated_ = 0;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace tessera::model
