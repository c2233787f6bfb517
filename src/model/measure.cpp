#include "tessera/model/measure.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>

#include "model/device_stage.h"
#include "model/failure.h"
#include "model/timing.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace tessera::model {
namespace {

// Matrices N(0, 0.02^2), vectors (norms, gains) 1.
at::Tensor random_masters(const std::vector<ports::TensorLayout>& layout,
                          const at::Device& device) {
  const int64_t count = static_cast<int64_t>(value_count(layout));
  at::Tensor masters =
      at::randn({count}, at::TensorOptions().dtype(at::kFloat).device(device)).mul_(0.02);
  for (const ports::TensorLayout& tensor : layout) {
    if (tensor.shape.size() > 1) continue;
    masters
        .narrow(0, static_cast<int64_t>(tensor.offset), static_cast<int64_t>(tensor.count))
        .fill_(1);
  }
  return masters;
}

// What one step takes in and the three things it does.
class Bench {
 public:
  Bench(const StepCase& step_case, const at::Device& device)
      : spec_(step_case.spec),
        stage_(spec_, step_case.stage, device, step_case.pass,
               random_masters(stage_layout(spec_, step_case.stage), device)) {
    const int64_t batch = spec_.training.microbatch_size, context = spec_.model.context;
    const at::TensorOptions options = at::TensorOptions().device(device);
    ids_ = at::randint(spec_.model.vocab, {batch, context + 1}, options.dtype(at::kLong));
    // Kind none hands on the layers' own type, the others fp32.
    const bool narrow = device.is_cuda() && spec_.boundary.kind == core::BoundaryKind::kNone;
    const at::TensorOptions boundary = options.dtype(narrow ? at::kBFloat16 : at::kFloat);
    const std::vector<int64_t> shape{batch, context, boundary_width(spec_)};
    if (step_case.stage > 0) input_ = at::randn(shape, boundary);
    if (step_case.stage + 1 < spec_.pipeline.stages) {
      outer_ = at::randn(shape, boundary).mul_(1e-3);
    }
  }
  void forward() { in_flight_.push_back(stage_.forward(ids_, input_).state); }
  void backward() {
    std::unique_ptr<PassState> oldest = std::move(in_flight_.front());
    in_flight_.pop_front();
    stage_.backward(std::move(oldest), outer_, /*accumulate=*/true, [](const at::Tensor&) {});
  }
  Status optimize() { return stage_.step(1e-4).status(); }

 private:
  const core::RunSpec spec_;
  DeviceStage stage_;
  at::Tensor ids_, input_, outer_;
  std::deque<std::unique_ptr<PassState>> in_flight_;
};

void reset_peak_memory([[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
  }
#endif
}

uint64_t peak_memory([[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return static_cast<uint64_t>(stats.allocated_bytes[0].peak);
  }
#endif
  return 0;
}

StatusOr<StepMeasurement> run_measurement(const StepCase& step_case, const at::Device& device,
                                          const MeasureOptions& options) {
  const core::RunSpec& spec = step_case.spec;
  Bench bench(step_case, device);
  Status status = ok_status();
  const auto step = [&] {
    bench.forward();
    bench.backward();
    if (status.ok()) status = bench.optimize();
  };
  for (uint32_t i = 1; i < options.in_flight; ++i) bench.forward();
  for (uint32_t i = 0; i < options.warmup_steps; ++i) step();
  // The first steps also measure kernels, which takes memory once.
  reset_peak_memory(device);
  if (options.warmed_up) options.warmed_up();
  StepMeasurement result;
  result.seconds = best_seconds(device, options.blocks, options.steps, step);
  result.peak_memory_bytes = peak_memory(device);
  // The parts, each waited for: they add up to a little more than the step.
  result.forward_seconds = result.backward_seconds = result.optimizer_seconds =
      result.launch_seconds = std::numeric_limits<double>::infinity();
  for (uint32_t i = 0; i < options.steps; ++i) {
    const auto time = [&](double* best, const std::function<void()>& part) {
      *best = std::min(*best, best_seconds(device, 1, 1, part));
    };
    time(&result.forward_seconds, [&] { bench.forward(); });
    time(&result.backward_seconds, [&] { bench.backward(); });
    time(&result.optimizer_seconds, [&] {
      if (status.ok()) status = bench.optimize();
    });
    const auto begin = std::chrono::steady_clock::now();
    bench.forward();
    bench.backward();
    const std::chrono::duration<double> launched = std::chrono::steady_clock::now() - begin;
    result.launch_seconds = std::min(result.launch_seconds, launched.count());
  }
  TESSERA_RETURN_IF_ERROR(status);
  result.tokens = spec.tokens_per_microbatch();
  result.parameters = core::stage_value_count(spec, step_case.stage);
  result.operations = step_operations(spec, step_case.stage);
  return result;
}

at::TensorOptions compute_options(const at::Device& device) {
  return at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16 : at::kFloat);
}

// Of two square matrices, as large as a device needs to be busy.
class LargeProduct {
 public:
  explicit LargeProduct(const at::Device& device) : side_(device.is_cuda() ? 8192 : 1024) {
    first_ = at::randn({side_, side_}, compute_options(device));
    second_ = at::randn({side_, side_}, compute_options(device));
  }
  void operator()() const { at::matmul(first_, second_); }
  double operations() const {
    const double side = static_cast<double>(side_);
    return 2 * side * side * side;
  }

 private:
  int64_t side_;
  at::Tensor first_, second_;
};

}  // namespace

double step_operations(const core::RunSpec& spec, StageIndex stage) {
  double matrices = 0;
  for (const ports::TensorLayout& tensor : stage_layout(spec, stage)) {
    const bool looked_up = tensor.name == "model.embed_tokens.weight" ||
                           tensor.name.ends_with(".anchor");
    if (tensor.shape.size() > 1 && !looked_up) matrices += static_cast<double>(tensor.count);
  }
  const core::LayerRange layers = core::layers_of(spec, stage);
  const double tokens = spec.tokens_per_microbatch();
  const double attention = 6.0 * tokens * spec.model.context * spec.model.width;
  return 6 * tokens * matrices + (layers.end - layers.begin) * attention;
}

StatusOr<StepMeasurement> measure_step(const StepCase& step_case, const std::string& device,
                                       const MeasureOptions& options) {
  return guarded("measuring a step", [&] {
    const at::Device torch_device(device);
    const c10::DeviceGuard on_device(torch_device);
    return run_measurement(step_case, torch_device, options);
  });
}

StatusOr<Ceilings> measure_ceilings(const std::string& name) {
  return guarded("measuring the device", [&]() -> StatusOr<Ceilings> {
    const at::Device device(name);
    const c10::DeviceGuard on_device(device);
    const LargeProduct product(device);
    product();
    Ceilings ceilings;
    ceilings.operations_per_second = product.operations() / best_seconds(device, 3, 10, product);
    const int64_t count = device.is_cuda() ? int64_t{1} << 29 : int64_t{1} << 26;
    const at::TensorOptions options = compute_options(device);
    const at::Tensor from = at::randn({count}, options), to = at::empty({count}, options);
    const auto copy = [&] { to.copy_(from); };
    copy();
    ceilings.bytes_per_second =
        2.0 * static_cast<double>(from.nbytes()) / best_seconds(device, 3, 10, copy);
    return ceilings;
  });
}

StatusOr<double> measure_sustained_product(const std::string& name, const MeasureOptions& options,
                                           double step_seconds) {
  return guarded("measuring the device", [&]() -> StatusOr<double> {
    const at::Device device(name);
    const c10::DeviceGuard on_device(device);
    const LargeProduct product(device);
    product();
    const double once = best_seconds(device, 1, 3, product);
    const auto calls = [&](uint32_t steps) {
      return static_cast<uint32_t>(std::ceil(steps * step_seconds / once));
    };
    best_seconds(device, 1, calls(options.warmup_steps), product);
    return product.operations() / best_seconds(device, options.blocks, calls(options.steps), product);
  });
}

}  // namespace tessera::model
