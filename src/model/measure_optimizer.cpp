#include "tessera/model/measure_optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/failure.h"
#include "model/optimizer.h"
#include "model/plain_optimizer.h"
#include "model/timing.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

using ports::TensorLayout;

bool is_for_muon(const core::TrainingSpec& training, const TensorLayout& tensor) {
  return training.optimizer == core::OptimizerKind::kMuon && tensor.shape.size() > 1 &&
         tensor.name.starts_with("model.layers.");
}

// Bytes of a value: the norm reads the gradient; Adam reads gradient, master and two moments and
// writes the last three, and the compute weight. Muon has one moment, and reads and writes its
// update too.
double bytes_of(const core::TrainingSpec& training, const std::vector<TensorLayout>& layout,
                bool on_gpu) {
  const double weight = on_gpu ? 2 : 4, update = on_gpu ? 2 : 4;
  double bytes = 0;
  for (const TensorLayout& tensor : layout) {
    const double value = is_for_muon(training, tensor)
                             ? 4 + (4 + 4 + 4 + update) + (update + 4 + 4 + weight)
                             : 4 + 4 * 4 + 3 * 4 + weight;
    bytes += value * static_cast<double>(tensor.count);
  }
  return bytes;
}

// An iteration on the smaller side s of a matrix with the larger side l: the Gram matrix 2 s^2 l,
// its square 2 s^3, and the product 2 s^2 l.
double operations_of(const core::TrainingSpec& training, const std::vector<TensorLayout>& layout) {
  double operations = 0;
  for (const TensorLayout& tensor : layout) {
    if (!is_for_muon(training, tensor)) continue;
    const double smaller = static_cast<double>(std::min(tensor.shape[0], tensor.shape[1]));
    const double larger = static_cast<double>(std::max(tensor.shape[0], tensor.shape[1]));
    operations += 5 * (4 * smaller * smaller * larger + 2 * smaller * smaller * smaller);
  }
  return operations;
}

double copy_seconds(double bytes, const at::Device& device, const MeasureOptions& options) {
  const at::TensorOptions type = at::TensorOptions().dtype(at::kByte).device(device);
  const int64_t half = static_cast<int64_t>(bytes / 2);
  const at::Tensor from = at::zeros({half}, type), to = at::zeros({half}, type);
  return best_seconds(device, options.blocks, options.steps, [&] { to.copy_(from); });
}

StatusOr<OptimizerMeasurement> run_measurement(const core::RunSpec& spec, StageIndex stage,
                                               const at::Device& device,
                                               const MeasureOptions& options) {
  const std::vector<TensorLayout> layout = stage_layout(spec, stage);
  const core::TrainingSpec& training = spec.training;
  const int64_t count = static_cast<int64_t>(value_count(layout));
  OptimizerMeasurement result;
  result.parameters = static_cast<uint64_t>(count);
  result.bytes = bytes_of(training, layout, device.is_cuda());
  result.operations = operations_of(training, layout);
  result.copy_seconds = copy_seconds(result.bytes, device, options);

  const at::Tensor masters =
      at::randn({count}, at::TensorOptions().dtype(at::kFloat).device(device)).mul_(0.02);
  const at::Tensor gradient = at::randn_like(masters);
  const at::Tensor weights = at::empty_like(masters, device.is_cuda() ? at::kBFloat16 : at::kFloat);
  Status status = ok_status();
  {
    const auto optimizer = make_optimizer(training, layout, device);
    const auto step = [&] {
      const auto norm = optimizer->step(masters, gradient, 1, 1e-4, weights);
      if (!norm.ok()) status = norm.status();
    };
    for (uint32_t i = 0; i < options.warmup_steps; ++i) step();
    result.seconds = best_seconds(device, options.blocks, options.steps, step);
  }
  TESSERA_RETURN_IF_ERROR(status);
  PlainOptimizer plain(training, layout, masters);
  const auto step = [&] { plain.step(masters, gradient, 1e-4, weights); };
  for (uint32_t i = 0; i < options.warmup_steps; ++i) step();
  result.plain_seconds = best_seconds(device, options.blocks, options.steps, step);
  return result;
}

}  // namespace

StatusOr<OptimizerMeasurement> measure_optimizer(const core::RunSpec& spec, StageIndex stage,
                                                 const std::string& device,
                                                 const MeasureOptions& options) {
  return guarded("measuring an optimizer", [&] {
    const at::Device torch_device(device);
    const c10::DeviceGuard on_device(torch_device);
    return run_measurement(spec, stage, torch_device, options);
  });
}

}  // namespace tessera::model
