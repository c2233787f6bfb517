#include "block_reducer.h"

#include <algorithm>
#include <cmath>

#include "tessera/base/log.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::node {
namespace {

static_assert(core::kMaxTrimmedUploads == kernels::kMaximumTrimmedInputs);

// Of the energy of a mean: below it, what is left without one upload is rounding.
constexpr double kNothingLeft = 1e-6;

// The norm of an upload's block, and its cosine to the mean of the others' directions (core/merge_messages.h).
core::UploadMeasure measure_of(double energy, double overlap, double total, double weight) {
  core::UploadMeasure measure{energy, 0};
  if (!std::isfinite(energy)) {
    measure.energy = -1;
  } else if (energy > kernels::kSmallestMergeEnergy) {
    const double own = overlap / std::sqrt(energy);
    const double others = total - 2 * weight * own + weight * weight;
    if (others > kNothingLeft * total) measure.alignment = energy * (own - weight) / std::sqrt(others);
  }
  return measure;
}

}  // namespace

BlockReducer::BlockReducer(const ReduceInputs& inputs) : inputs_(inputs), device_(inputs.device) {
  for (const core::UploadRef& upload : inputs.uploads) weights_.push_back(upload.weight);
}

uint64_t BlockReducer::values_of(uint64_t number) const {
  return std::min<uint64_t>(inputs_.merge.block_values, inputs_.values() - number * inputs_.merge.block_values);
}

std::vector<ReducedBlock> BlockReducer::reduce(const std::vector<uint64_t>& numbers,
                                               const std::vector<std::vector<std::string>>& contents) {
  std::vector<ReducedBlock> reduced(numbers.size());
  for (size_t first = 0, count = 0; first < numbers.size(); first += count) {
    const uint64_t values = values_of(numbers[first]);
    count = 1;
    if (values == inputs_.merge.block_values) {
      while (first + count < numbers.size() && values_of(numbers[first + count]) == values) ++count;
    }
    reduce_run(numbers, contents, first, count, &reduced);
  }
  return reduced;
}

void BlockReducer::reduce_run(const std::vector<uint64_t>& numbers, const std::vector<std::vector<std::string>>& contents,
                              size_t first, size_t count, std::vector<ReducedBlock>* reduced) {
  const core::MergeSpec& merge = inputs_.merge;
  const uint64_t values = values_of(numbers[first]);
  const size_t uploads = weights_.size();
  std::vector<const uint8_t*> payloads;
  std::vector<uint8_t*> results;
  std::vector<double> energies(count * uploads), overlaps(count * uploads), totals(count);
  for (size_t b = 0; b < count; ++b) {
    for (const std::string& content : contents[first + b]) payloads.push_back(reinterpret_cast<const uint8_t*>(content.data()));
    std::string& bytes = (*reduced)[first + b].bytes;
    bytes.resize(kernels::merge_block_bytes(merge.result_format, values));
    results.push_back(reinterpret_cast<uint8_t*>(bytes.data()));
  }
  run({.upload_format = merge.upload_format,
       .result_format = merge.result_format,
       .block_values = merge.block_values,
       .values = values,
       .input_count = static_cast<uint32_t>(uploads),
       .weights = weights_.data(),
       .trimmed = merge.trim_share > 0,
       .trim = static_cast<uint32_t>(merge.trim_share * static_cast<double>(uploads)),
       .seed = inputs_.rounding_key,
       .block_count = count,
       .numbers = numbers.data() + first,
       .payloads = payloads.data(),
       .results = results.data(),
       .energies = energies.data(),
       .overlaps = overlaps.data(),
       .totals = totals.data()});
  // Moments have no say in the norm and the cosine that the gate judges; that they are numbers it must know.
  const uint64_t moments = core::plane_blocks(merge, inputs_.stage_values);
  for (size_t b = 0; b < count; ++b) {
    for (size_t k = 0; k < uploads; ++k) {
      const size_t at = k * count + b;
      (*reduced)[first + b].measures.push_back(
          numbers[first + b] < moments ? measure_of(energies[at], overlaps[at], totals[b], weights_[k])
                                       : core::UploadMeasure{std::isfinite(energies[at]) ? 0.0 : -1.0, 0});
    }
  }
}

void BlockReducer::run(const kernels::MergeReduction& reduction) {
  if (device_ != nullptr && device_->takes(reduction)) {
    const Status status = device_->reduce(reduction);
    if (status.ok()) return;
    spdlog::warn("{}; the CPU reduces the rest", message_of(status));
    device_ = nullptr;
  }
  TESSERA_CHECK(cpu_.reduce(reduction).ok());
}

}  // namespace tessera::node
