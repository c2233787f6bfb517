#include "model/device_stage.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "model/host_copy.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

bool goes_by_hand(const core::RunSpec& spec, const at::Device& device, PassKind kind) {
  const bool fits =
      spec.boundary.kind != core::BoundaryKind::kIota || spec.pipeline.stages == 1;
  const bool fp8 = spec.training.matrix_products == core::MatrixProducts::kFp8;
  return kind == PassKind::kFused || (kind == PassKind::kBest && (device.is_cuda() || fp8) && fits);
}

std::unique_ptr<StagePass> make_pass(const core::RunSpec& spec, StageIndex stage,
                                     const at::TensorOptions& compute, bool by_hand) {
  if (spec.training.deterministic) {
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  if (!by_hand) return make_autograd_pass(spec, stage, compute);
  return make_fused_pass(spec, stage, compute);
}

}  // namespace

DeviceStage::DeviceStage(const core::RunSpec& spec, StageIndex stage, const at::Device& device,
                         PassKind kind, at::Tensor masters)
    : spec_(spec),
      stage_(stage),
      compute_(at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16
                                                                         : at::kFloat)),
      pass_(make_pass(spec, stage, compute_, goes_by_hand(spec, device, kind))),
      masters_(std::move(masters)) {
  renew_weights();
  gradients_ = std::make_unique<LeafGradients>(weights_->leaves, device, /*keeps=*/device.is_cpu());
  optimizer_ = make_optimizer(spec.training, stage_layout(spec, stage), device, gradients_->begins());
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
  std::erase_if(versions_, [](const auto& entry) { return entry.second.expired(); });
  versions_[version] = weights_;
}

// A version lives as long as a microbatch in flight holds it. Its leaves tile the layout.
std::vector<core::WeightVersion> DeviceStage::older_weights() {
  std::vector<core::WeightVersion> older;
  for (const auto& [version, held] : versions_) {
    const std::shared_ptr<const StageWeights> weights = held.lock();
    if (!weights || weights == weights_) continue;
    core::WeightVersion& copy = older.emplace_back();
    copy.version = version;
    copy.values.resize(static_cast<size_t>(masters_.numel()));
    for (const StageWeights::Leaf& leaf : weights->leaves) {
      copy_to_host(leaf.tensor.detach().reshape({-1}), copy.values.data() + leaf.offset);
    }
  }
  return older;
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
  gradients_->begin_pass(accumulated_ > 0);
  GradientSink sink = accumulate ? GradientSink(gradients_.get()) : GradientSink();
  // Nothing counts until all is added.
  const uint32_t accumulated = accumulate ? std::exchange(accumulated_, 0) + 1 : accumulated_;
  ready(pass_->backward(std::move(state), outer, &sink));
  const c10::NoGradGuard no_graph;
  sink.flush();
  accumulated_ = accumulated;
}

StatusOr<double> DeviceStage::step(double learning_rate) {
  const c10::NoGradGuard no_graph;
  const at::Tensor flat = flat_weights();
  const StatusOr<double> norm =
      optimizer_->step(masters_, gradients_->pieces(), std::exchange(accumulated_, 0),
                       learning_rate, flat.narrow(0, 0, masters_.numel()));
  gradients_->release();
  if (norm.ok()) publish(flat);
  return norm;
}

std::vector<float> DeviceStage::read_masters() { return to_host(masters_); }

void DeviceStage::write_masters(const std::vector<float>& values) {
  copy_from_host(values.data(), masters_);
  renew_weights();
}

core::LocalState DeviceStage::read_state() {
  core::LocalState state;
  state.masters = to_host(masters_);
  state.first_moment = to_host(optimizer_->first_moment());
  state.second_moment = to_host(optimizer_->second_moment());
  if (accumulated_ > 0) {
    state.gradient.resize(state.masters.size());
    float* next = state.gradient.data();
    for (const at::Tensor& piece : gradients_->pieces()) {
      copy_to_host(piece, next);
      next += piece.numel();
    }
  }
  state.optimizer_steps = optimizer_->steps();
  state.gradient_microbatches = accumulated_;
  return state;
}

void DeviceStage::write_state(const core::LocalState& state) {
  const c10::NoGradGuard no_graph;
  const at::Device device = masters_.device();
  // All uploads first: if one fails, the stage is as before.
  const at::Tensor masters = to_device(state.masters, device);
  const at::Tensor first_moment = to_device(state.first_moment, device);
  const at::Tensor second_moment = to_device(state.second_moment, device);
  if (!state.gradient.empty()) {
    const float* next = state.gradient.data();
    for (const at::Tensor& piece : gradients_->pieces()) {
      copy_from_host(next, piece);
      next += piece.numel();
    }
  }
  optimizer_->restore(first_moment, second_moment, state.optimizer_steps);
  accumulated_ = state.gradient_microbatches;
  masters_.copy_(masters);
  renew_weights();
}

}  // namespace tessera::model
