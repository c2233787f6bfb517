#include "tessera/model/stage_engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "model/failure.h"
#include "model/box_stage.h"
#include "model/box_watch.h"
#include "model/device_stage.h"
#include "model/host_copy.h"
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

// Of a state from outside: past it, a count is no longer exact as a double.
constexpr uint64_t kMostOptimizerSteps = uint64_t{1} << 53;

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
  uint64_t weight_version = 0;
  std::unique_ptr<PassState> state;
};

// Everything the calls below return by value crosses from the device when they return: no work is
// left pending that the caller would have to wait for. Used by one thread.
class LibTorchStageEngine final : public ports::StageEngine {
 public:
  LibTorchStageEngine(const EngineOptions& options, const at::Device& device,
                      std::unique_ptr<StageCompute> compute)
      : spec_(options.spec),
        stage_(options.stage),
        max_in_flight_(options.max_in_flight),
        device_(device),
        layout_(stage_layout(spec_, stage_)),
        count_(model::value_count(layout_)),
        compute_(std::move(compute)) {}

  const std::vector<TensorLayout>& layout() const override { return layout_; }
  uint64_t value_count() const override { return count_; }
  uint32_t accumulated_microbatches() const override { return compute_->accumulated(); }
  uint64_t weight_version() const override { return compute_->weight_version(); }

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
    copy_or_end("reading the weights", [&] { values = compute_->read_masters(); });
    return values;
  }

  Status set_masters(const std::vector<float>& values) override {
    return guarded("setting the weights", [&]() -> Status {
      const c10::DeviceGuard on_device(device_);
      TESSERA_RETURN_IF_ERROR(check_values(values, count_, "weights"));
      compute_->write_masters(values);
      return ok_status();
    });
  }

  LocalState export_state() override {
    LocalState state;
    copy_or_end("reading the optimizer state", [&] { state = compute_->read_state(); });
    return state;
  }

  Status import_state(const LocalState& state) override {
    return guarded("setting the optimizer state", [&] { return run_import(state); });
  }

  StatusOr<std::vector<ports::WeightVersion>> older_weights() override {
    return guarded("reading older weights",
                   [&]() -> StatusOr<std::vector<ports::WeightVersion>> { return compute_->older_weights(); });
  }

 private:
  bool is_head() const { return stage_ == 0; }
  bool is_tail() const { return stage_ + 1 == spec_.pipeline.stages; }
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

  const RunSpec spec_;
  const StageIndex stage_;
  const size_t max_in_flight_;
  const at::Device device_;
  const std::vector<TensorLayout> layout_;
  const uint64_t count_;
  const std::unique_ptr<StageCompute> compute_;
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
  const at::Tensor ids = token_tensor(tokens, context() + 1, device_);
  at::Tensor boundary;
  if (!is_head()) {
    const int64_t width = boundary_width(spec_);
    TESSERA_ASSIGN_OR_RETURN(const at::Tensor decoded,
                             decode_rows(input, spec_.boundary.codec, batch() * context(), width,
                                         device_, "activation"));
    boundary = decoded.view({batch(), context(), width});
  }
  PassOutput output = compute_->forward(ids, boundary);

  ForwardResult result;
  result.weight_version = weight_version();
  if (is_tail()) {
    result.loss = output.loss.item<double>();
    if (!std::isfinite(result.loss)) {
      return data_loss("the loss of microbatch {} attempt {} is not finite; it is left out",
                       key.microbatch, key.attempt);
    }
  } else {
    TESSERA_ASSIGN_OR_RETURN(result.output, encode_rows(output.wire.to(at::kFloat), forward_encoding(spec_)));
  }
  in_flight_.emplace(key, InFlight{result.weight_version, std::move(output.state)});
  return result;
}

// The gradient of the stage's output from downstream; undefined at the tail.
StatusOr<at::Tensor> LibTorchStageEngine::decode_gradient(const BoundaryPayload& payload) const {
  if (is_tail()) {
    if (!payload.bytes.empty()) {
      return invalid_argument("the last stage takes no boundary gradient, but got one of {} bytes",
                              payload.bytes.size());
    }
    return at::Tensor();
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
  InFlight entry = std::move(found->second);
  in_flight_.erase(found);

  BackwardResult result;
  result.weight_version = entry.weight_version;
  std::optional<PendingPayload> pending;
  const auto hand_over = [&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(result.input_gradient, pending->finish());
    if (input_gradient_ready) input_gradient_ready(std::exchange(result.input_gradient, {}));
    return ok_status();
  };
  Status sent = ok_status();
  const auto ready = [&](const at::Tensor& gradient) {
    if (is_head()) return;
    pending.emplace(begin_encode(gradient.to(at::kFloat),
                                 gradient_encoding(spec_, key.microbatch, stage_ - 1)));
    // A GPU is given the weight gradients to do before its answer is waited for.
    if (!device_.is_cuda()) sent = hand_over();
  };
  compute_->backward(std::move(entry.state), outer, accumulate, ready);
  if (pending && device_.is_cuda()) sent = hand_over();
  TESSERA_RETURN_IF_ERROR(sent);
  return result;
}

StatusOr<StepResult> LibTorchStageEngine::run_step(double learning_rate) {
  const c10::DeviceGuard on_device(device_);
  if (compute_->accumulated() == 0) {
    return failed_precondition(
        "an optimizer step without a gradient: no microbatch was accumulated since the last");
  }
  TESSERA_ASSIGN_OR_RETURN(const double norm, compute_->step(learning_rate));
  return StepResult{norm, weight_version()};
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
  if (state.optimizer_steps > kMostOptimizerSteps) {
    return invalid_argument("{} optimizer steps are more than any run takes; the state is damaged",
                            state.optimizer_steps);
  }
  if (state.gradient.empty() != (state.gradient_microbatches == 0)) {
    return invalid_argument(
        "a gradient of {} values cannot come from {} microbatches; the state is damaged",
        state.gradient.size(), state.gradient_microbatches);
  }
  if (!state.gradient.empty())
    TESSERA_RETURN_IF_ERROR(check_values(state.gradient, count_, "gradient"));

  compute_->write_state(state);
  return ok_status();
}

Status check_fp8(const std::string& device, size_t devices, PassKind pass) {
  if (devices > 1) {
    return error(absl::StatusCode::kUnimplemented,
                 "training.matrix_products: fp8 takes a miner of one GPU, not of {}; start one miner "
                 "for each GPU",
                 devices);
  }
  if (pass == PassKind::kAutograd) {
    return invalid_argument("training.matrix_products: fp8 does not go through autograd");
  }
  if (device == "cpu" || multiplies_fp8(device)) return ok_status();
  return failed_precondition(
      "training.matrix_products: fp8 takes a GPU of compute capability 8.9 or more, which {} is not; "
      "join a run with bf16",
      device);
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
  if (checked.spec.training.matrix_products == core::MatrixProducts::kFp8) {
    TESSERA_RETURN_IF_ERROR(check_fp8(device, options.box.devices.size(), options.pass));
  }
  return guarded("building the stage", [&]() -> StatusOr<std::unique_ptr<ports::StageEngine>> {
    if (options.threads > 0) at::set_num_threads(options.threads);
    const bool box = options.box.devices.size() > 1;
    const at::Device torch_device(box ? options.box.devices.front() : device);
    const c10::DeviceGuard on_device(torch_device);
    const core::RunSpec& spec = checked.spec;
    const std::vector<float> masters = initial_values(spec, options.stage, options.threads);
    std::unique_ptr<StageCompute> compute;
    if (box) {
      TESSERA_ASSIGN_OR_RETURN(compute, make_box_stage(spec, options.stage, options.box, options.threads, masters));
    } else {
      compute = std::make_unique<DeviceStage>(spec, options.stage, torch_device, options.pass,
                                              to_device(masters, torch_device));
    }
    std::unique_ptr<ports::StageEngine> engine =
        std::make_unique<LibTorchStageEngine>(checked, torch_device, std::move(compute));
    if (box) engine = watched(std::move(engine), options.box);
    return engine;
  });
}

}  // namespace tessera::model
