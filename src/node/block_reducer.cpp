#include "block_reducer.h"

#include <algorithm>
#include <cmath>

#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::node {
namespace {

static_assert(core::kMaxTrimmedUploads == kernels::kMaximumTrimmedInputs);

// Of the energy of a mean: below it, what is left without one upload is rounding.
constexpr double kNothingLeft = 1e-6;
// A block below this norm has no direction: its reciprocal would leave fp32's range.
constexpr double kSmallestEnergy = 1e-60;

}  // namespace

std::string BlockReducer::reduce(const std::vector<std::string>& contents, uint64_t number) {
  const uint64_t block = inputs_.merge.block_values;
  const uint64_t values = std::min(block, inputs_.values() - number * block);
  mean_.resize(values);
  for (size_t k = 0; k < contents.size(); ++k) {
    values_[k].resize(values);
    kernels::merge_decode_cpu({.run = {inputs_.merge.upload_format, values, block},
                               .payload = reinterpret_cast<const uint8_t*>(contents[k].data()),
                               .assign = true,
                               .sum = values_[k].data()});
  }
  if (number < core::plane_blocks(inputs_.merge, inputs_.stage_values)) {
    measure();
  } else {
    measure_moments();
  }
  take_mean();
  std::string bytes(kernels::merge_block_bytes(inputs_.merge.result_format, values), '\0');
  kernels::merge_encode_cpu({.run = {inputs_.merge.result_format, values, block},
                             .input = mean_.data(),
                             .stochastic = true,
                             .seed = inputs_.rounding_key,
                             .first_block = number,
                             .payload = reinterpret_cast<uint8_t*>(bytes.data())});
  return bytes;
}

double BlockReducer::dot(const std::vector<float>& a, const std::vector<float>& b) const {
  double sum = 0;
  kernels::merge_dots_cpu({a.size(), inputs_.merge.block_values, a.data(), b.data(), &sum});
  return sum;
}

// The norm of each upload's block, and its cosine to the mean of the others' directions (core/merge_messages.h).
void BlockReducer::measure() {
  const size_t uploads = values_.size();
  std::vector<double> energies(uploads);
  mean_.assign(mean_.size(), 0.0f);  // of directions, here
  for (size_t k = 0; k < uploads; ++k) {
    energies[k] = dot(values_[k], values_[k]);
    // What is not finite has no direction, and must not touch the others'.
    if (!std::isfinite(energies[k]) || energies[k] <= kSmallestEnergy) continue;
    const auto factor = static_cast<float>(inputs_.uploads[k].weight / std::sqrt(energies[k]));
    kernels::merge_scaled_sum_cpu({mean_.size(), inputs_.merge.block_values, values_[k].data(), &factor, mean_.data()});
  }
  const double total = dot(mean_, mean_);
  measures_.clear();
  for (size_t k = 0; k < uploads; ++k) {
    core::UploadMeasure& measure = measures_.emplace_back(core::UploadMeasure{energies[k], 0});
    if (!std::isfinite(energies[k])) {
      measure.energy = -1;
    } else if (energies[k] > kSmallestEnergy) {
      const double weight = inputs_.uploads[k].weight;
      const double own = dot(values_[k], mean_) / std::sqrt(energies[k]);
      const double others = total - 2 * weight * own + weight * weight;
      if (others > kNothingLeft * total) measure.alignment = energies[k] * (own - weight) / std::sqrt(others);
    }
  }
}

// Moments have no say in the norm and the cosine that the gate judges; that they are numbers it must know.
void BlockReducer::measure_moments() {
  measures_.clear();
  for (const std::vector<float>& values : values_) measures_.push_back({std::isfinite(dot(values, values)) ? 0.0 : -1.0, 0});
}

void BlockReducer::take_mean() {
  std::vector<const float*> pointers;
  std::vector<float> weights;
  for (size_t k = 0; k < values_.size(); ++k) {
    pointers.push_back(values_[k].data());
    weights.push_back(inputs_.uploads[k].weight);
  }
  if (inputs_.merge.trim_share == 0) {
    kernels::weighted_sum_cpu(pointers.data(), weights.data(), pointers.size(), mean_.size(), mean_.data());
    return;
  }
  const auto count = static_cast<uint32_t>(pointers.size());
  const auto trim = static_cast<uint32_t>(inputs_.merge.trim_share * count);
  kernels::trimmed_mean_cpu({pointers.data(), count, trim, mean_.size(), mean_.data()});
}

}  // namespace tessera::node
