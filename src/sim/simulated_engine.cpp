#include "tessera/sim/simulated_engine.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "tessera/base/prng.h"

namespace tessera::sim {
namespace {

constexpr float kMomentum = 0.5f;

struct PayloadLabel {
  uint64_t microbatch = 0;
  uint32_t boundary = 0;
  uint32_t direction = 0;
};

}  // namespace

SimulatedEngine::SimulatedEngine(const core::RunSpec& spec, StageIndex stage,
                                 SimulatedEngineOptions options)
    : spec_(spec),
      stage_(stage),
      options_(std::move(options)),
      layout_(core::stage_layout(spec, stage)) {
  Prng random(mix64(spec.training.seed) ^ stage);
  masters_.resize(core::stage_value_count(spec, stage));
  for (float& value : masters_) value = static_cast<float>(random.uniform() * 2 - 1);
  first_moment_.assign(masters_.size(), 0);
  second_moment_.assign(masters_.size(), 0);
  gradient_.assign(masters_.size(), 0);
  new_version();
}

void SimulatedEngine::new_version() {
  ++version_;
  weights_ = std::make_shared<const std::vector<float>>(masters_);
}

core::BoundaryPayload SimulatedEngine::payload(uint32_t boundary, core::Direction direction,
                                               MicrobatchId microbatch) const {
  core::BoundaryPayload out;
  const PayloadLabel label{microbatch, boundary, static_cast<uint32_t>(direction)};
  const size_t rows = spec_.tokens_per_microbatch();
  out.bytes.resize(options_.whole_tensors
                       ? payload_bytes(spec_.boundary.codec, rows,
                                       static_cast<size_t>(core::boundary_width(spec_)))
                       : sizeof(label));
  TESSERA_CHECK(out.bytes.size() >= sizeof(label));
  std::memcpy(out.bytes.data(), &label, sizeof(label));
  out.exponent = static_cast<int32_t>(boundary) - 7;
  return out;
}

Status SimulatedEngine::check(const core::BoundaryPayload& input, uint32_t boundary,
                              core::Direction direction, MicrobatchId microbatch) const {
  const core::BoundaryPayload expected = payload(boundary, direction, microbatch);
  if (input.bytes == expected.bytes && input.exponent == expected.exponent) return ok_status();
  return internal_error("the payload is not that of microbatch {} at boundary {}", microbatch,
                        boundary);
}

StatusOr<ports::ForwardResult> SimulatedEngine::forward(const core::MicrobatchKey& key,
                                                        const std::vector<uint32_t>& tokens,
                                                        const core::BoundaryPayload& input) {
  if (options_.work) TESSERA_RETURN_IF_ERROR(options_.work());
  const size_t ids = spec_.training.microbatch_size * (spec_.model.context + 1);
  if (tokens.size() != (options_.whole_tensors ? ids : 0)) return internal_error("wrong tokens");
  if (stage_ > 0)
    TESSERA_RETURN_IF_ERROR(check(input, stage_ - 1, core::Direction::kForward, key.microbatch));
  if (!held_.emplace(key, Held{weights_, version_}).second)
    return internal_error("microbatch {} twice", key.microbatch);
  ports::ForwardResult result;
  result.weight_version = version_;
  if (is_tail()) {
    double sum = 0;
    for (const float value : *weights_) sum += std::abs(value);
    result.loss = sum / static_cast<double>(masters_.size());
  } else {
    result.output = payload(stage_, core::Direction::kForward, key.microbatch);
  }
  return result;
}

StatusOr<ports::BackwardResult> SimulatedEngine::backward(
    const core::MicrobatchKey& key, const core::BoundaryPayload& output_gradient, bool accumulate,
    const ports::InputGradientReady& input_gradient_ready) {
  if (options_.work) TESSERA_RETURN_IF_ERROR(options_.work());
  const auto held = held_.extract(key);
  if (held.empty()) return internal_error("microbatch {} is not held", key.microbatch);
  if (!is_tail())
    TESSERA_RETURN_IF_ERROR(
        check(output_gradient, stage_, core::Direction::kBackward, key.microbatch));
  ports::BackwardResult result;
  result.weight_version = held.mapped().version;
  if (stage_ > 0) {
    result.input_gradient = payload(stage_ - 1, core::Direction::kBackward, key.microbatch);
    if (input_gradient_ready) input_gradient_ready(std::exchange(result.input_gradient, {}));
  }
  if (accumulate) {
    const auto& weights = *held.mapped().weights;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto noise =
          static_cast<float>(mix64(key.microbatch * 8191 + i) >> 40) * 0x1.0p-24f - 0.5f;
      gradient_[i] += weights[i] + 0.1f * noise;
    }
    ++accumulated_;
  }
  return result;
}

StatusOr<ports::StepResult> SimulatedEngine::step(double learning_rate) {
  double norm = 0;
  for (size_t i = 0; i < masters_.size(); ++i) {
    const float mean = gradient_[i] / static_cast<float>(accumulated_);
    norm += static_cast<double>(mean) * mean;
    first_moment_[i] = kMomentum * first_moment_[i] + mean;
    second_moment_[i] += mean * mean;
    masters_[i] -= static_cast<float>(learning_rate) * first_moment_[i];
  }
  gradient_.assign(masters_.size(), 0);
  accumulated_ = 0;
  ++optimizer_steps_;
  new_version();
  return ports::StepResult{std::sqrt(norm), version_};
}

Status SimulatedEngine::set_masters(const std::vector<float>& values) {
  if (values.size() != masters_.size())
    return invalid_argument("{} values for {}", values.size(), masters_.size());
  masters_ = values;
  new_version();
  return ok_status();
}

core::LocalState SimulatedEngine::export_state() {
  core::LocalState state{masters_, first_moment_, second_moment_, optimizer_steps_,
                         {},       accumulated_,  {}};
  if (accumulated_ > 0) state.gradient = gradient_;
  return state;
}

Status SimulatedEngine::import_state(const core::LocalState& state) {
  if (state.masters.size() != masters_.size()) return invalid_argument("a state of another stage");
  masters_ = state.masters;
  first_moment_ = state.first_moment;
  second_moment_ = state.second_moment;
  optimizer_steps_ = state.optimizer_steps;
  gradient_ = state.gradient.empty() ? std::vector<float>(masters_.size(), 0.0f) : state.gradient;
  accumulated_ = state.gradient_microbatches;
  new_version();
  return ok_status();
}

StatusOr<std::vector<ports::WeightVersion>> SimulatedEngine::older_weights() {
  std::map<uint64_t, std::vector<float>> versions;
  for (const auto& [key, held] : held_) {
    if (held.version != version_) versions[held.version] = *held.weights;
  }
  std::vector<ports::WeightVersion> older;
  for (auto& [version, values] : versions) older.push_back({version, std::move(values)});
  return older;
}

}  // namespace tessera::sim
