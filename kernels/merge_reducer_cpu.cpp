// Defines what a reduction of a merge gives.
#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_reducer.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::kernels {

Status CpuMergeReducer::reduce(const MergeReduction& reduction) {
  TESSERA_CHECK(reduction.block_count <= 1 || reduction.values == reduction.block_values);
  inputs_.resize(reduction.input_count);
  for (std::vector<float>& input : inputs_) input.resize(reduction.values);
  sum_.resize(reduction.values);
  for (uint64_t block = 0; block < reduction.block_count; ++block) reduce_block(reduction, block);
  return ok_status();
}

void CpuMergeReducer::reduce_block(const MergeReduction& reduction, uint64_t block) {
  const uint32_t count = reduction.input_count;
  const uint64_t values = reduction.values;
  const auto dot = [&](const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    merge_dots_cpu({.values = values, .block_values = reduction.block_values, .a = a.data(), .b = b.data(), .dots = &sum});
    return sum;
  };
  std::vector<const float*> pointers(count);
  std::vector<double> energies(count);
  std::vector<float> factors(count);
  for (uint32_t k = 0; k < count; ++k) {
    pointers[k] = inputs_[k].data();
    merge_decode_cpu({.run = {reduction.upload_format, values, reduction.block_values},
                      .payload = reduction.payloads[block * count + k],
                      .assign = true,
                      .sum = inputs_[k].data()});
    energies[k] = dot(inputs_[k], inputs_[k]);
  }
  merge_factors_cpu({1, count, reduction.weights, energies.data(), factors.data()});
  merge_scaled_sum_cpu({.values = values,
                        .block_values = reduction.block_values,
                        .inputs = pointers.data(),
                        .input_count = count,
                        .factors = factors.data(),
                        .out = sum_.data()});
  for (uint32_t k = 0; k < count; ++k) {
    reduction.energies[k * reduction.block_count + block] = energies[k];
    reduction.overlaps[k * reduction.block_count + block] = dot(inputs_[k], sum_);
  }
  reduction.totals[block] = dot(sum_, sum_);
  if (reduction.trimmed) {
    trimmed_mean_cpu({pointers.data(), count, reduction.trim, values, sum_.data()});
  } else {
    weighted_sum_cpu(pointers.data(), reduction.weights, count, values, sum_.data());
  }
  merge_encode_cpu({.run = {reduction.result_format, values, reduction.block_values},
                    .input = sum_.data(),
                    .stochastic = true,
                    .seed = reduction.seed,
                    .first_block = reduction.numbers[block],
                    .payload = reduction.results[block]});
}

}  // namespace tessera::kernels
