#include "tessera/model/measure_zero.h"

#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "model/box_workers.h"
#include "model/failure.h"
#include "model/timing.h"
#include "tessera/base/prng.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace tessera::model {
namespace {

// What a worker feeds its share of the stage with.
struct Feed {
  at::Tensor ids, input, outer;
};

Feed make_feed(const ZeroCase& zero_case, size_t worker) {
  const core::RunSpec& spec = zero_case.spec;
  const at::Device device(zero_case.box.devices[worker]);
  const int64_t batch = batch_share(spec.training.microbatch_size, static_cast<uint32_t>(worker),
                                    static_cast<uint32_t>(zero_case.box.devices.size()))
                            .count;
  const at::TensorOptions options = at::TensorOptions().device(device);
  Feed feed;
  feed.ids = at::randint(spec.model.vocab, {batch, spec.model.context + 1}, options.dtype(at::kLong));
  const bool narrow = device.is_cuda() && spec.boundary.kind == core::BoundaryKind::kNone;
  const at::TensorOptions boundary = options.dtype(narrow ? at::kBFloat16 : at::kFloat);
  const std::vector<int64_t> shape{batch, spec.model.context, boundary_width(spec)};
  if (zero_case.stage > 0) feed.input = at::randn(shape, boundary);
  if (zero_case.stage + 1 < spec.pipeline.stages) feed.outer = at::randn(shape, boundary).mul_(1e-3);
  return feed;
}

// Matrices of about N(0, 0.02^2), vectors 1.
std::vector<float> random_masters(const core::RunSpec& spec, StageIndex stage) {
  const std::vector<ports::TensorLayout> layout = stage_layout(spec, stage);
  std::vector<float> masters(value_count(layout));
  Prng prng(1);
  for (const ports::TensorLayout& tensor : layout) {
    const bool matrix = tensor.shape.size() > 1;
    for (uint64_t i = 0; i < tensor.count; ++i) {
      // Uniform, of that deviation.
      const double uniform = static_cast<double>(prng.below(1 << 20)) / (1 << 19) - 1;
      masters[tensor.offset + i] = matrix ? static_cast<float>(uniform * 0.0346) : 1.0f;
    }
  }
  return masters;
}

void reset_peak([[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (!device.is_cuda()) return;
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
#endif
}

WorkerMemory memory_of(const ShardWorker& worker, [[maybe_unused]] const at::Device& device) {
  const ShardWorker::Memory live = worker.memory();
  WorkerMemory memory;
  memory.weights = static_cast<uint64_t>(live.weights);
  memory.gradients = static_cast<uint64_t>(live.gradients);
  memory.optimizer = static_cast<uint64_t>(live.optimizer);
  memory.buckets = static_cast<uint64_t>(live.buckets);
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    const int64_t peak = stats.allocated_bytes[0].peak;
    memory.activations = static_cast<uint64_t>(
        std::max<int64_t>(0, peak - live.weights - live.gradients - live.optimizer - live.buckets));
    memory.allocator = static_cast<uint64_t>(std::max<int64_t>(0, stats.reserved_bytes[0].peak - peak));
  }
#endif
  return memory;
}

class Bench {
 public:
  Bench(const ZeroCase& zero_case, BoxWorkers* workers) : zero_case_(zero_case), workers_(workers), feeds_(workers->size()) {}

  Status prepare() {
    const std::vector<float> masters = random_masters(zero_case_.spec, zero_case_.stage);
    return workers_->run("preparing", [&](ShardWorker& worker, size_t i) -> Status {
      feeds_[i] = make_feed(zero_case_, i);
      worker.write_masters(masters.data());
      return ok_status();
    });
  }

  // All workers, `steps` steps each, until their devices are done.
  Status steps(uint32_t count) {
    return workers_->run("a step", [&](ShardWorker& worker, size_t i) -> Status {
      for (uint32_t step = 0; step < count; ++step) {
        PassOutput output = worker.forward(feeds_[i].ids, feeds_[i].input);
        worker.backward(std::move(output.state), feeds_[i].outer, /*accumulate=*/true, [](const at::Tensor&) {});
        TESSERA_RETURN_IF_ERROR(worker.step(1e-4).status());
      }
      wait_for(workers_->device(i));
      return ok_status();
    });
  }

 private:
  const ZeroCase& zero_case_;
  BoxWorkers* const workers_;
  std::vector<Feed> feeds_;
};

StatusOr<ZeroMeasurement> run_measurement(const ZeroCase& zero_case, const MeasureOptions& options) {
  core::RunSpec spec = zero_case.spec;
  spec.training.microbatches_per_step = 1;
  TESSERA_ASSIGN_OR_RETURN(const auto workers, BoxWorkers::create(spec, zero_case.stage, zero_case.box, 0));
  Bench bench(zero_case, workers.get());
  TESSERA_RETURN_IF_ERROR(bench.prepare());
  TESSERA_RETURN_IF_ERROR(bench.steps(options.warmup_steps));
  for (size_t i = 0; i < workers->size(); ++i) reset_peak(workers->device(i));

  ZeroMeasurement result;
  result.seconds = std::numeric_limits<double>::infinity();
  for (uint32_t block = 0; block < options.blocks; ++block) {
    const auto begin = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(bench.steps(options.steps));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    result.seconds = std::min(result.seconds, taken.count() / options.steps);
  }
  for (size_t i = 0; i < workers->size(); ++i) {
    result.workers.push_back(memory_of(workers->worker(i), workers->device(i)));
    workers->worker(i).stall().measure(true);
  }
  TESSERA_RETURN_IF_ERROR(bench.steps(options.steps));
  for (size_t i = 0; i < workers->size(); ++i) {
    const c10::DeviceGuard on_device(workers->device(i));
    result.stalled_milliseconds =
        std::max(result.stalled_milliseconds, workers->worker(i).stall().take_milliseconds() / options.steps);
  }
  result.tokens = zero_case.spec.tokens_per_microbatch();
  result.parameters = core::stage_value_count(zero_case.spec, zero_case.stage);
  return result;
}

}  // namespace

StatusOr<ZeroMeasurement> measure_zero(const ZeroCase& zero_case, const MeasureOptions& options) {
  return guarded("measuring a box", [&] { return run_measurement(zero_case, options); });
}

}  // namespace tessera::model
