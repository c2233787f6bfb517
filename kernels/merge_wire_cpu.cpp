// The reference of the merge's wire formats and reduction: it defines the bytes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "merge_math.h"
#include "tessera/base/status.h"
#include "widest_vectors.h"

namespace tessera::kernels {
namespace {

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");
static_assert(kMergeGroup % 4 == 0, "a group holds whole blocks of random words");

void check_run(uint64_t block_values) {
  TESSERA_CHECK(block_values >= kMergeGroup && block_values <= kMaximumMergeBlock &&
                block_values % kMergeGroup == 0);
}

TESSERA_INSIDE uint32_t peak_bits_of(const float* values, uint64_t count) {
  int32_t peak = 0;  // signed: what SSE2 has a comparison for
  for (uint64_t i = 0; i < count; ++i) {
    peak = std::max(peak, static_cast<int32_t>(bits_of_float(values[i]) & kMagnitudeMask));
  }
  return static_cast<uint32_t>(peak);
}

// Up to three words more than `count`.
TESSERA_INSIDE void fill_words(uint64_t seed, uint64_t block, uint64_t first_value, uint64_t count,
                               uint32_t* words) {
  for (uint64_t i = 0; i < count; i += 4) {
    const PhiloxBlock random = rounding_words(seed, block, (first_value + i) / 4);
    std::memcpy(words + i, random.word, sizeof(random.word));
  }
}

TESSERA_WIDEST_VECTORS
void encode_floats(const MergeEncodeParams& params, const float* input, uint64_t count,
                   uint64_t block, uint8_t* out) {
  if (params.run.format == Codec::kFp32) {
    for (uint64_t i = 0; i < count; ++i) {
      const float stored = canonical_nan(input[i]);
      std::memcpy(out + 4 * i, &stored, 4);
    }
    return;
  }
  uint32_t words[kMergeGroup];
  for (uint64_t start = 0; start < count; start += kMergeGroup) {
    const uint64_t n = std::min(kMergeGroup, count - start);
    if (params.stochastic) fill_words(params.seed, block, start, n, words);
    for (uint64_t i = 0; i < n; ++i) {
      const uint16_t stored = params.stochastic
                                  ? bfloat16_stochastically(input[start + i], words[i])
                                  : bfloat16_of_float(input[start + i]);
      std::memcpy(out + 2 * (start + i), &stored, 2);
    }
  }
}

TESSERA_INSIDE void store_codes(Codec format, const int32_t* values, uint64_t count, uint8_t* out) {
  if (format == Codec::kInt8) {
    for (uint64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(values[i]);
    return;
  }
  for (uint64_t i = 0; i + 1 < count; i += 2) {
    out[i / 2] = static_cast<uint8_t>((values[i] & 0xf) | ((values[i + 1] & 0xf) << 4));
  }
  if (count % 2 != 0) out[count / 2] = static_cast<uint8_t>(values[count - 1] & 0xf);
}

TESSERA_WIDEST_VECTORS
void encode_integers(const MergeEncodeParams& params, const float* input, uint64_t count,
                     uint64_t block, uint8_t* out) {
  const Codec format = params.run.format;
  const float levels = merge_levels(format);
  const uint64_t groups = (count + kMergeGroup - 1) / kMergeGroup;
  uint8_t* codes = out + groups * sizeof(float);
  uint32_t words[kMergeGroup];
  int32_t values[kMergeGroup];
  for (uint64_t group = 0; group < groups; ++group) {
    const uint64_t start = group * kMergeGroup;
    const uint64_t n = std::min(kMergeGroup, count - start);
    const MergeScale scale = merge_scale(peak_bits_of(input + start, n), levels);
    std::memcpy(out + 4 * group, &scale.scale, 4);
    if (scale.silent) {
      std::fill(values, values + n, 0);
    } else if (params.stochastic) {
      fill_words(params.seed, block, start, n, words);
      for (uint64_t i = 0; i < n; ++i) {
        values[i] = merge_code(input[start + i], scale.scale, levels, true, words[i]);
      }
    } else {
      for (uint64_t i = 0; i < n; ++i) {
        values[i] = merge_code(input[start + i], scale.scale, levels, false, 0);
      }
    }
    store_codes(format, values, n, codes + start * static_cast<uint64_t>(bits_of(format)) / 8);
  }
}

// The numbers [start, start + n) of a block.
TESSERA_INSIDE void decode_group(Codec format, const uint8_t* block, uint64_t block_count,
                                 uint64_t start, uint64_t n, float* __restrict__ values) {
  if (format == Codec::kFp32) {
    std::memcpy(values, block + 4 * start, 4 * n);
    return;
  }
  if (format == Codec::kBf16) {
    for (uint64_t i = 0; i < n; ++i) {
      uint16_t stored;
      std::memcpy(&stored, block + 2 * (start + i), 2);
      values[i] = float_of_bfloat16(stored);
    }
    return;
  }
  const uint64_t groups = (block_count + kMergeGroup - 1) / kMergeGroup;
  float scale;
  std::memcpy(&scale, block + 4 * (start / kMergeGroup), 4);
  const uint8_t* codes = block + 4 * groups + start * static_cast<uint64_t>(bits_of(format)) / 8;
  if (format == Codec::kInt8) {
    for (uint64_t i = 0; i < n; ++i) {
      values[i] = merge_value(static_cast<int8_t>(codes[i]), scale);
    }
    return;
  }
  for (uint64_t i = 0; i < n; ++i) {
    values[i] = merge_value(int4_of_nibble(codes[i / 2] >> (i % 2 * 4)), scale);
  }
}

// What the codes of a block leave out of its input.
TESSERA_WIDEST_VECTORS
void find_residual(Codec format, const uint8_t* block, const float* __restrict__ input, uint64_t count,
                   float* __restrict__ residual) {
  for (uint64_t start = 0; start < count; start += kMergeGroup) {
    const uint64_t n = std::min(kMergeGroup, count - start);
    float values[kMergeGroup];
    decode_group(format, block, count, start, n, values);
    for (uint64_t i = 0; i < n; ++i) {
      const float left = input[start + i] - values[i];
      residual[start + i] = std::isfinite(left) ? left : 0.0f;
    }
  }
}

// The sums of min(value^2, most) and of residual^2 over a group, in lanes that are added in order.
struct FeedbackSums {
  double room = 0, residual = 0;
};
TESSERA_INSIDE FeedbackSums feedback_sums(const float* values, const float* residual, uint64_t count, double most) {
  constexpr uint64_t kLanes = 8;
  double room[kLanes] = {}, squares[kLanes] = {};
  const auto add = [&](uint64_t i, uint64_t lane) {
    const double value = values[i], left = residual[i];
    room[lane] += std::min(value * value, most);
    squares[lane] += left * left;
  };
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (uint64_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (uint64_t lane = 0; i < count; ++i, ++lane) add(i, lane);
  FeedbackSums sums;
  for (uint64_t lane = 0; lane < kLanes; ++lane) {
    sums.room += room[lane];
    sums.residual += squares[lane];
  }
  return sums;
}

// Of the residual of a group, what goes into its values; NaN: it is not finite.
TESSERA_INSIDE float feedback_share(Codec format, const float* values, const float* residual, uint64_t count) {
  const uint32_t peak = peak_bits_of(values, count);
  const double step = has_scales(format) && peak < kInfinityBits ? merge_scale(peak, merge_levels(format)).scale : 0;
  FeedbackSums sums = feedback_sums(values, residual, count, has_scales(format) ? step * step / 6 : HUGE_VAL);
  if (!std::isfinite(sums.residual)) return std::nanf("");
  if (format == Codec::kFp32 || peak >= kInfinityBits) return 0;
  if (!has_scales(format)) sums.room *= 0x1p-18;
  return sums.residual > sums.room ? static_cast<float>(std::sqrt(sums.room / sums.residual)) : 1.0f;
}

}  // namespace

TESSERA_WIDEST_VECTORS
void merge_feedback_cpu(const MergeFeedbackParams& params) {
  check_run(params.run.block_values);
  TESSERA_CHECK(params.run.values == 0 ||
                (params.residual != nullptr && params.values != nullptr && params.rest != nullptr));
  // Blocks hold whole groups: the groups of the run are those of its blocks.
  for (uint64_t start = 0; start < params.run.values; start += kMergeGroup) {
    const uint64_t n = std::min(kMergeGroup, params.run.values - start);
    const float* __restrict__ residual = params.residual + start;
    float* __restrict__ values = params.values + start;
    float* __restrict__ rest = params.rest + start;
    const float share = feedback_share(params.run.format, values, residual, n);
    if (std::isnan(share)) {
      std::fill(rest, rest + n, 0.0f);
      continue;
    }
    for (uint64_t i = 0; i < n; ++i) {
      const float part = residual[i] * share;
      values[i] += part;
      rest[i] = residual[i] - part;
    }
  }
}

void merge_encode_cpu(const MergeEncodeParams& params) {
  check_run(params.run.block_values);
  TESSERA_CHECK(params.run.values == 0 || (params.input != nullptr && params.payload != nullptr));
  const uint64_t whole = merge_block_bytes(params.run.format, params.run.block_values);
  for (uint64_t b = 0; b * params.run.block_values < params.run.values; ++b) {
    const uint64_t first = b * params.run.block_values;
    const uint64_t count = std::min(params.run.block_values, params.run.values - first);
    uint8_t* out = params.payload + b * whole;
    const uint64_t number = params.numbers != nullptr ? params.numbers[b] : params.first_block + b;
    if (has_scales(params.run.format)) {
      encode_integers(params, params.input + first, count, number, out);
    } else {
      encode_floats(params, params.input + first, count, number, out);
    }
    if (params.residual != nullptr) {
      find_residual(params.run.format, out, params.input + first, count, params.residual + first);
    }
  }
}

TESSERA_WIDEST_VECTORS
void merge_decode_cpu(const MergeDecodeParams& params) {
  check_run(params.run.block_values);
  TESSERA_CHECK(params.run.values == 0 || (params.sum != nullptr && params.payload != nullptr));
  const uint64_t whole = merge_block_bytes(params.run.format, params.run.block_values);
  float values[kMergeGroup];
  for (uint64_t b = 0; b * params.run.block_values < params.run.values; ++b) {
    const uint64_t first = b * params.run.block_values;
    const uint64_t count = std::min(params.run.block_values, params.run.values - first);
    const uint8_t* block = params.payload + b * whole;
    for (uint64_t start = 0; start < count; start += kMergeGroup) {
      const uint64_t n = std::min(kMergeGroup, count - start);
      float* __restrict__ sum = params.sum + first + start;
      if (params.assign) {
        decode_group(params.run.format, block, count, start, n, sum);
        continue;
      }
      decode_group(params.run.format, block, count, start, n, values);
      for (uint64_t i = 0; i < n; ++i) sum[i] += params.weight * values[i];
    }
  }
}

TESSERA_WIDEST_VECTORS
void merge_dots_cpu(const MergeDotsParams& params) {
  check_run(params.block_values);
  TESSERA_CHECK(params.b_values % params.block_values == 0);
  for (uint64_t b = 0; b * params.block_values < params.values; ++b) {
    const uint64_t first = b * params.block_values;
    const uint64_t count = std::min(params.block_values, params.values - first);
    const float* x = params.a + first;
    const float* y = params.b + (params.b_values > 0 ? first % params.b_values : first);
    double lanes[kMergeGroup] = {};
    uint64_t i = 0;
    for (; i + kMergeGroup <= count; i += kMergeGroup) {
      for (uint64_t lane = 0; lane < kMergeGroup; ++lane) {
        lanes[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(y[i + lane]);
      }
    }
    for (uint64_t lane = 0; i + lane < count; ++lane) {
      lanes[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(y[i + lane]);
    }
    for (uint64_t half = kMergeGroup / 2; half > 0; half /= 2) {
      for (uint64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    params.dots[b] = lanes[0];
  }
}

void merge_factors_cpu(const MergeFactorsParams& params) {
  for (uint32_t k = 0; k < params.input_count; ++k) {
    for (uint64_t b = 0; b < params.blocks; ++b) {
      const uint64_t at = k * params.blocks + b;
      params.factors[at] = merge_factor(params.weights[k], params.energies[at]);
    }
  }
}

TESSERA_WIDEST_VECTORS
void merge_scaled_sum_cpu(const MergeScaledSumParams& params) {
  check_run(params.block_values);
  const uint64_t blocks = (params.values + params.block_values - 1) / params.block_values;
  for (uint64_t b = 0; b < blocks; ++b) {
    const uint64_t first = b * params.block_values;
    const uint64_t count = std::min(params.block_values, params.values - first);
    float* __restrict__ out = params.out + first;
    std::fill(out, out + count, 0.0f);
    for (uint32_t k = 0; k < params.input_count; ++k) {
      const float factor = params.factors[k * blocks + b];
      if (std::isnan(factor)) continue;
      const float* __restrict__ input = params.inputs[k] + first;
      for (uint64_t i = 0; i < count; ++i) out[i] += factor * input[i];
    }
  }
}

void trimmed_mean_cpu(const TrimmedMeanParams& params) {
  const uint32_t n = params.input_count;
  TESSERA_CHECK(n <= kMaximumTrimmedInputs && 2 * uint64_t{params.trim} < n);
  uint32_t ordered[kMaximumTrimmedInputs];
  const auto kept = static_cast<float>(n - 2 * params.trim);
  for (uint64_t i = 0; i < params.values; ++i) {
    for (uint32_t k = 0; k < n; ++k) ordered[k] = ordered_bits(params.inputs[k][i]);
    std::sort(ordered, ordered + n);
    float sum = 0.0f;
    for (uint32_t k = params.trim; k < n - params.trim; ++k) sum += value_of_ordered(ordered[k]);
    params.out[i] = sum / kept;
  }
}

}  // namespace tessera::kernels
