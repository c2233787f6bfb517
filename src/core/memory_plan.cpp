#include "tessera/core/memory_plan.h"

#include <algorithm>
#include <cmath>

#include "tessera/core/assignment.h"
#include "tessera/core/stage_layout.h"

namespace tessera::core {
namespace {

constexpr double kWorkspaceShare = 0.15;  // as stage_memory_bytes() adds

struct BytesPerValue {
  double weight, gradient, optimizer;
};

BytesPerValue bytes_per_value(Accounting accounting) {
  return accounting == Accounting::kFp32 ? BytesPerValue{4, 4, 8} : BytesPerValue{2, 4, 12};
}

// The largest part that is gathered or reduced as one: half a layer, or what lies before the first or behind the last.
double largest_unit(const RunSpec& spec, StageIndex stage) {
  double largest = 0, count = 0;
  std::string unit;
  for (const TensorLayout& tensor : stage_layout(spec, stage)) {
    const std::string own = unit_of(tensor);
    if (own != unit) count = 0;
    unit = own;
    count += static_cast<double>(tensor.count);
    largest = std::max(largest, count);
  }
  return largest;
}

}  // namespace

StatusOr<StateBytes> plan_state_bytes(double values, uint32_t gpus, uint32_t zero_stage, Accounting accounting) {
  if (!std::isfinite(values) || values < 1) return invalid_argument("params: {} is no number of parameters", values);
  if (gpus < 1 || gpus > kMostGpusOfBox) {
    return invalid_argument("gpus: {} is not allowed; it must be 1 to {}", gpus, kMostGpusOfBox);
  }
  if (zero_stage > kMostZeroStage) {
    return invalid_argument("zero: {} is not allowed; it must be 0 to {}", zero_stage, kMostZeroStage);
  }
  const BytesPerValue of = bytes_per_value(accounting);
  const double share = values / gpus;
  return StateBytes{.weights = of.weight * (zero_stage >= 3 ? share : values),
                    .gradients = of.gradient * (zero_stage >= 2 ? share : values),
                    .optimizer = of.optimizer * (zero_stage >= 1 ? share : values)};
}

StatusOr<std::vector<BoxPlan>> plan_box(const RunSpec& spec, uint32_t gpus, uint64_t gpu_memory_bytes) {
  std::vector<BoxPlan> plans;
  for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
    const double values = static_cast<double>(stage_value_count(spec, stage));
    // What a single GPU needs, less the values' part of it (core/assignment.h): the activations.
    const double whole = static_cast<double>(stage_memory_bytes(spec, stage, "cuda")) / (1 + kWorkspaceShare);
    const double activations = std::max(0.0, whole - values * 20) / gpus;
    const double unit = largest_unit(spec, stage);
    for (uint32_t zero = 0; zero <= kMostZeroStage; ++zero) {
      TESSERA_ASSIGN_OR_RETURN(const StateBytes states, plan_state_bytes(values, gpus, zero, Accounting::kMixed));
      BoxPlan plan{.stage = stage, .zero_stage = zero, .states = states.total() + states.weights, .activations = activations};
      if (gpus > 1 && zero >= 2) plan.buckets += 2 * 4 * unit;
      if (gpus > 1 && zero >= 3) plan.buckets += 2 * 2 * unit;
      plan.total = (plan.states + plan.activations + plan.buckets) * (1 + kWorkspaceShare);
      plan.fits = plan.total <= static_cast<double>(gpu_memory_bytes);
      plans.push_back(plan);
    }
  }
  return plans;
}

uint64_t equivalent_memory_bytes(uint64_t gpu_memory_bytes, uint32_t gpus, uint32_t zero_stage) {
  const BytesPerValue of = bytes_per_value(Accounting::kMixed);
  const double whole = 2 * of.weight + of.gradient + of.optimizer;  // two versions of the compute weights
  const auto states = plan_state_bytes(1, gpus, zero_stage, Accounting::kMixed);
  TESSERA_CHECK(states.ok());
  const double shared = states->total() + states->weights;
  return static_cast<uint64_t>(static_cast<double>(gpu_memory_bytes) * (whole / shared));
}

}  // namespace tessera::core
