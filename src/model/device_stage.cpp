#include "model/device_stage.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

std::unique_ptr<StagePass> make_pass(const core::RunSpec& spec, StageIndex stage,
                                     const at::TensorOptions& compute, PassKind kind) {
  const bool fits =
      spec.boundary.kind != core::BoundaryKind::kIota || spec.pipeline.stages == 1;
  const bool fused = kind == PassKind::kFused ||
                     (kind == PassKind::kBest && compute.device().is_cuda() && fits);
  if (spec.training.deterministic) {
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  if (!fused) return make_autograd_pass(spec, stage, compute);
  return make_fused_pass(spec, stage, compute, spec.training.recompute,
                         spec.training.deterministic);
}

}  // namespace

DeviceStage::DeviceStage(const core::RunSpec& spec, StageIndex stage, const at::Device& device,
                         PassKind kind, at::Tensor masters)
    : spec_(spec),
      stage_(stage),
      compute_(at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16
                                                                         : at::kFloat)),
      pass_(make_pass(spec, stage, compute_, kind)),
      masters_(std::move(masters)),
      accumulator_(at::empty_like(masters_)),
      optimizer_(make_optimizer(spec.training, stage_layout(spec, stage), device)) {
  renew_weights();
}

// Room for the compute weights, with the zeros behind them that the pass may read.
at::Tensor DeviceStage::flat_weights() const {
  const int64_t count = masters_.numel();
  at::Tensor flat = at::empty({count + weight_padding(spec_, stage_)}, compute_);
  flat.narrow(0, count, flat.numel() - count).zero_();
  return flat;
}

void DeviceStage::publish(const at::Tensor& flat) {
  const uint64_t version = weights_ ? weights_->version + 1 : 0;
  weights_ = std::make_shared<const StageWeights>(
      make_stage_weights(spec_, stage_, flat, version, /*requires_grad=*/true));
}

void DeviceStage::renew_weights() {
  const at::Tensor flat = flat_weights();
  flat.narrow(0, 0, masters_.numel()).copy_(masters_);
  publish(flat);
}

PassOutput DeviceStage::forward(const at::Tensor& ids, const at::Tensor& boundary) {
  return pass_->forward({weights_, ids, boundary});
}

void DeviceStage::backward(std::unique_ptr<PassState> state, const at::Tensor& outer,
                           bool accumulate,
                           const std::function<void(const at::Tensor&)>& ready) {
  GradientSink sink = accumulate ? GradientSink(accumulator_, accumulated_ > 0) : GradientSink();
  // Nothing counts until all is added.
  const uint32_t accumulated = accumulate ? std::exchange(accumulated_, 0) + 1 : accumulated_;
  ready(pass_->backward(std::move(state), outer, &sink));
  sink.flush();
  accumulated_ = accumulated;
}

StatusOr<double> DeviceStage::step(double learning_rate) {
  const c10::NoGradGuard no_graph;
  const at::Tensor flat = flat_weights();
  TESSERA_ASSIGN_OR_RETURN(
      const double norm,
      optimizer_->step(masters_, accumulator_, std::exchange(accumulated_, 0), learning_rate,
                       flat.narrow(0, 0, masters_.numel())));
  publish(flat);
  return norm;
}

void DeviceStage::set_masters(const at::Tensor& masters) {
  masters_.copy_(masters);
  renew_weights();
}

void DeviceStage::restore(const at::Tensor& masters, const at::Tensor& first_moment,
                          const at::Tensor& second_moment, uint64_t steps,
                          const at::Tensor& gradient, uint32_t microbatches) {
  optimizer_->restore(first_moment, second_moment, steps);
  if (gradient.defined()) accumulator_.copy_(gradient);
  accumulated_ = microbatches;
  set_masters(masters);
}

}  // namespace tessera::model
