#include "tessera/model/stage_engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "model/failure.h"
#include "model/optimizer.h"
#include "model/stage_function.h"
#include "model/token_batch.h"
#include "model/wire.h"

namespace tessera::model {
namespace {

using core::RunSpec;
using ports::BackwardResult;
using ports::BoundaryPayload;
using ports::ForwardResult;
using ports::LocalState;
using ports::MicrobatchKey;
using ports::StepResult;
using ports::TensorLayout;

at::Tensor to_device(const std::vector<float>& values, const at::Device& device) {
  // from_blob borrows and does not write; the copy is the tensor that stays.
  const at::Tensor borrowed = at::from_blob(const_cast<float*>(values.data()),
                                            {static_cast<int64_t>(values.size())}, at::kFloat);
  return borrowed.to(at::TensorOptions().dtype(at::kFloat).device(device), /*non_blocking=*/false,
                     /*copy=*/true);
}

std::vector<float> to_host(const at::Tensor& values) {
  const at::Tensor host = values.to(at::kCPU).contiguous();
  const float* begin = host.const_data_ptr<float>();
  return std::vector<float>(begin, begin + host.numel());
}

Status check_values(const std::vector<float>& values, uint64_t count, const char* name) {
  if (values.size() != count) {
    return invalid_argument(
        "{}: {} values, but this stage has {}; they belong to another stage or run", name,
        values.size(), count);
  }
  if (!std::all_of(values.begin(), values.end(),
                   [](float value) { return std::isfinite(value); })) {
    return data_loss(
        "{}: a value is infinite or not a number; fetch them again from another source", name);
  }
  return ok_status();
}

// What backward() needs of a forward().
struct InFlight {
  std::shared_ptr<const StageWeights> weights;
  at::Tensor input;   // leaf [B, T, r]; undefined at the head
  at::Tensor output;  // the boundary tensor, or the loss
};

// Everything the calls below return by value crosses from the device when they return: no work is
// left pending that the caller would have to wait for. Used by one thread.
class LibTorchStageEngine final : public ports::StageEngine {
 public:
  LibTorchStageEngine(const EngineOptions& options, const at::Device& device)
      : spec_(options.spec),
        stage_(options.stage),
        max_in_flight_(options.max_in_flight),
        device_(device),
        compute_(at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16
                                                                           : at::kFloat)),
        layout_(stage_layout(spec_, stage_)),
        count_(model::value_count(layout_)),
        function_(spec_, stage_, compute_),
        optimizer_(spec_.training, layout_, device),
        masters_(to_device(initial_values(spec_, stage_, options.threads), device)),
        accumulator_(at::zeros_like(masters_)) {
    renew_weights();
  }

  const std::vector<TensorLayout>& layout() const override { return layout_; }
  uint64_t value_count() const override { return count_; }
  uint32_t accumulated_microbatches() const override { return accumulated_; }
  uint64_t weight_version() const override { return weights_->version; }

  StatusOr<ForwardResult> forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                  const BoundaryPayload& input) override {
    return guarded("forward", [&] { return run_forward(key, tokens, input); });
  }

  StatusOr<BackwardResult> backward(const MicrobatchKey& key,
                                    const BoundaryPayload& output_gradient,
                                    bool accumulate,
                                    const ports::InputGradientReady& input_gradient_ready) override {
    return guarded("backward", [&] {
      return run_backward(key, output_gradient, accumulate, input_gradient_ready);
    });
  }

  void discard(const MicrobatchKey& key) override { in_flight_.erase(key); }

  StatusOr<StepResult> step(double learning_rate) override {
    return guarded("optimizer step", [&] { return run_step(learning_rate); });
  }

  std::vector<float> masters() override {
    std::vector<float> values;
    copy_or_end("reading the weights", [&] { values = to_host(masters_); });
    return values;
  }

  Status set_masters(const std::vector<float>& values) override {
    return guarded("setting the weights", [&]() -> Status {
      const c10::DeviceGuard on_device(device_);
      TESSERA_RETURN_IF_ERROR(check_values(values, count_, "weights"));
      masters_.copy_(to_device(values, device_));
      renew_weights();
      return ok_status();
    });
  }

  LocalState export_state() override {
    LocalState state;
    copy_or_end("reading the optimizer state", [&] {
      state.masters = to_host(masters_);
      state.first_moment = to_host(optimizer_.first_moment());
      state.second_moment = to_host(optimizer_.second_moment());
      if (accumulated_ > 0) state.gradient = to_host(accumulator_);
    });
    state.optimizer_steps = optimizer_.steps();
    state.gradient_microbatches = accumulated_;
    return state;
  }

  Status import_state(const LocalState& state) override {
    return guarded("setting the optimizer state", [&] { return run_import(state); });
  }

 private:
  bool is_head() const { return function_.is_head(); }
  bool is_tail() const { return function_.is_tail(); }
  int64_t batch() const { return spec_.training.microbatch_size; }
  int64_t context() const { return spec_.model.context; }

  // Copies that the interface gives no way to refuse: a failure ends the process, and its
  // supervisor starts it again.
  template <class Function>
  void copy_or_end(const char* what, Function&& function) {
    const Status status = guarded(what, [&]() -> Status {
      const c10::DeviceGuard on_device(device_);
      function();
      return ok_status();
    });
    if (!status.ok()) std::fprintf(stderr, "%s\n", message_of(status).c_str());
    TESSERA_CHECK(status.ok());
  }

  // A new version of the compute weights from the masters. The old one lives on in the microbatches
  // that use it.
  void renew_weights() {
    const uint64_t version = weights_ ? weights_->version + 1 : 0;
    const at::Tensor flat = masters_.to(compute_, /*non_blocking=*/false, /*copy=*/true);
    weights_ = std::make_shared<const StageWeights>(
        make_stage_weights(spec_, stage_, flat, version, /*requires_grad=*/true));
  }

  Status admit(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
               const BoundaryPayload& input) const;
  StatusOr<ForwardResult> run_forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                      const BoundaryPayload& input);
  StatusOr<at::Tensor> decode_gradient(const BoundaryPayload& payload) const;
  StatusOr<BackwardResult> run_backward(const MicrobatchKey& key,
                                        const BoundaryPayload& output_gradient, bool accumulate,
                                        const ports::InputGradientReady& input_gradient_ready);
  StatusOr<StepResult> run_step(double learning_rate);
  Status run_import(const LocalState& state);
  void clear_gradient() {
    accumulator_.zero_();
    accumulated_ = 0;
  }

  const RunSpec spec_;
  const StageIndex stage_;
  const size_t max_in_flight_;
  const at::Device device_;
  const at::TensorOptions compute_;
  const std::vector<TensorLayout> layout_;
  const uint64_t count_;
  const StageFunction function_;
  FlatAdamW optimizer_;
  at::Tensor masters_;      // [count], fp32
  at::Tensor accumulator_;  // [count], fp32: the sum of the microbatches' gradients
  uint32_t accumulated_ = 0;
  std::shared_ptr<const StageWeights> weights_;
  std::map<MicrobatchKey, InFlight> in_flight_;
};

Status LibTorchStageEngine::admit(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                  const BoundaryPayload& input) const {
  if (in_flight_.contains(key)) {
    return error(absl::StatusCode::kAlreadyExists, "microbatch {} attempt {} is in flight already",
                 key.microbatch, key.attempt);
  }
  if (in_flight_.size() >= max_in_flight_) {
    return error(
        absl::StatusCode::kResourceExhausted,
        "{} microbatches are in flight, the most this stage holds; send this one to another miner",
        in_flight_.size());
  }
  const size_t expected = static_cast<size_t>(batch() * (context() + 1));
  if (tokens.size() != expected) {
    return invalid_argument(
        "{} tokens, but training.microbatch_size {} x (model.context {} + 1) is {}", tokens.size(),
        batch(), context(), expected);
  }
  TESSERA_RETURN_IF_ERROR(check_tokens(tokens, spec_.model.vocab));
  if (is_head() && !input.bytes.empty()) {
    return invalid_argument("the first stage takes no activation, but got one of {} bytes",
                            input.bytes.size());
  }
  return ok_status();
}

StatusOr<ForwardResult> LibTorchStageEngine::run_forward(const MicrobatchKey& key,
                                                         const std::vector<uint32_t>& tokens,
                                                         const BoundaryPayload& input) {
  const c10::DeviceGuard on_device(device_);
  TESSERA_RETURN_IF_ERROR(admit(key, tokens, input));
  InFlight entry{weights_, {}, {}};
  if (!is_head()) {
    const int64_t width = boundary_width(spec_);
    TESSERA_ASSIGN_OR_RETURN(const at::Tensor decoded,
                             decode_rows(input, spec_.boundary.codec, batch() * context(), width,
                                         device_, "activation"));
    entry.input = decoded.view({batch(), context(), width}).requires_grad_(true);
  }
  const at::Tensor ids = token_tensor(tokens, context() + 1, device_);
  const StageOutput output = function_.run(*weights_, ids.narrow(1, 0, context()), entry.input);

  ForwardResult result;
  result.weight_version = weights_->version;
  if (is_tail()) {
    entry.output = function_.loss(*weights_, output.value, ids.narrow(1, 1, context()));
    result.loss = entry.output.item<double>();
    if (!std::isfinite(result.loss)) {
      return data_loss("the loss of microbatch {} attempt {} is not finite; it is left out",
                       key.microbatch, key.attempt);
    }
  } else {
    entry.output = output.value;
    TESSERA_ASSIGN_OR_RETURN(result.output, encode_rows(output.wire, forward_encoding(spec_)));
  }
  in_flight_.emplace(key, std::move(entry));
  return result;
}

// The gradient of the stage's output: from downstream, or 1 for the tail's loss.
StatusOr<at::Tensor> LibTorchStageEngine::decode_gradient(const BoundaryPayload& payload) const {
  if (is_tail()) {
    if (!payload.bytes.empty()) {
      return invalid_argument("the last stage takes no boundary gradient, but got one of {} bytes",
                              payload.bytes.size());
    }
    return at::ones({}, at::TensorOptions().dtype(at::kFloat).device(device_));
  }
  const int64_t width = boundary_width(spec_);
  TESSERA_ASSIGN_OR_RETURN(const at::Tensor decoded,
                           decode_rows(payload, spec_.boundary.codec, batch() * context(), width,
                                       device_, "boundary gradient"));
  return decoded.view({batch(), context(), width});
}

StatusOr<BackwardResult> LibTorchStageEngine::run_backward(const MicrobatchKey& key,
                                                           const BoundaryPayload& output_gradient,
                                                           bool accumulate,
                                                           const ports::InputGradientReady& input_gradient_ready) {
  const c10::DeviceGuard on_device(device_);
  const auto found = in_flight_.find(key);
  if (found == in_flight_.end()) {
    return not_found(
        "microbatch {} attempt {} is not in flight: its forward was not run here, or it was "
        "discarded",
        key.microbatch, key.attempt);
  }
  TESSERA_ASSIGN_OR_RETURN(const at::Tensor outer, decode_gradient(output_gradient));
  const InFlight entry = std::move(found->second);
  in_flight_.erase(found);

  BackwardResult result;
  result.weight_version = entry.weights->version;
  std::vector<at::Tensor> inputs;
  if (!is_head()) inputs.push_back(entry.input);
  const std::vector<StageWeights::Leaf>& leaves = entry.weights->leaves;
  if (accumulate) {
    for (const StageWeights::Leaf& leaf : leaves) inputs.push_back(leaf.tensor);
  }
  if (inputs.empty()) return result;
  const std::vector<at::Tensor> gradients = torch::autograd::grad({entry.output}, inputs, {outer});

  const c10::NoGradGuard no_graph;
  if (!is_head()) {
    TESSERA_ASSIGN_OR_RETURN(result.input_gradient,
                             encode_rows(gradients[0].contiguous(),
                                         gradient_encoding(spec_, key.microbatch, stage_ - 1)));
    if (input_gradient_ready) input_gradient_ready(std::exchange(result.input_gradient, {}));
  }
  if (!accumulate) return result;
  const at::Tensor* gradient = &gradients[is_head() ? 0 : 1];
  for (const StageWeights::Leaf& leaf : leaves) {
    accumulator_.narrow(0, static_cast<int64_t>(leaf.offset), gradient->numel())
        .view(gradient->sizes())
        .add_(*gradient);
    ++gradient;
  }
  ++accumulated_;
  return result;
}

StatusOr<StepResult> LibTorchStageEngine::run_step(double learning_rate) {
  const c10::DeviceGuard on_device(device_);
  const c10::NoGradGuard no_graph;
  if (accumulated_ == 0) {
    return failed_precondition(
        "an optimizer step without a gradient: no microbatch was accumulated since the last");
  }
  const StatusOr<double> norm =
      optimizer_.step(masters_, accumulator_, accumulated_, learning_rate);
  clear_gradient();
  if (!norm.ok()) return norm.status();
  renew_weights();
  return StepResult{*norm, weights_->version};
}

Status LibTorchStageEngine::run_import(const LocalState& state) {
  const c10::DeviceGuard on_device(device_);
  const c10::NoGradGuard no_graph;
  TESSERA_RETURN_IF_ERROR(check_values(state.masters, count_, "weights"));
  TESSERA_RETURN_IF_ERROR(check_values(state.first_moment, count_, "first moment"));
  TESSERA_RETURN_IF_ERROR(check_values(state.second_moment, count_, "second moment"));
  if (std::any_of(state.second_moment.begin(), state.second_moment.end(),
                  [](float value) { return value < 0; })) {
    return data_loss(
        "second moment: a value is negative, which no mean of squares is; the state is damaged");
  }
  if (state.gradient.empty() != (state.gradient_microbatches == 0)) {
    return invalid_argument(
        "a gradient of {} values cannot come from {} microbatches; the state is damaged",
        state.gradient.size(), state.gradient_microbatches);
  }
  if (!state.gradient.empty())
    TESSERA_RETURN_IF_ERROR(check_values(state.gradient, count_, "gradient"));

  // All uploads first: if one fails, the engine is as before.
  const at::Tensor masters = to_device(state.masters, device_);
  const at::Tensor first_moment = to_device(state.first_moment, device_);
  const at::Tensor second_moment = to_device(state.second_moment, device_);
  const at::Tensor gradient =
      state.gradient.empty() ? at::zeros_like(masters) : to_device(state.gradient, device_);
  optimizer_.restore(first_moment, second_moment, state.optimizer_steps);
  masters_.copy_(masters);
  accumulator_.copy_(gradient);
  accumulated_ = state.gradient_microbatches;
  renew_weights();
  return ok_status();
}

}  // namespace

StatusOr<std::unique_ptr<ports::StageEngine>> make_stage_engine(const EngineOptions& options) {
  EngineOptions checked = options;
  TESSERA_RETURN_IF_ERROR(core::validate(&checked.spec));
  if (options.stage >= checked.spec.pipeline.stages) {
    return invalid_argument("stage {} does not exist; pipeline.stages is {}", options.stage,
                            checked.spec.pipeline.stages);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string device, choose_device(options.device));
  return guarded("building the stage", [&]() -> StatusOr<std::unique_ptr<ports::StageEngine>> {
    if (options.threads > 0) at::set_num_threads(options.threads);
    const at::Device torch_device(device);
    const c10::DeviceGuard on_device(torch_device);
    return std::make_unique<LibTorchStageEngine>(checked, torch_device);
  });
}

}  // namespace tessera::model
