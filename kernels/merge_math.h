// The arithmetic of the merge's wire formats, once for CPU and CUDA (docs/numerics.md). C++17.
#pragma once

#include <cmath>

#include "codec_math.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::kernels {

constexpr float kSmallestNormal = 1.17549435e-38f;  // 2^-126
constexpr double kLargestDouble = 1.7976931348623157e308;

TESSERA_HOST_DEVICE float merge_levels(Codec format) {
  return format == Codec::kInt8 ? 127.0f : 7.0f;
}

struct MergeScale {
  float scale;  // as on the wire
  bool silent;  // every code is 0: a group of zeros, or one that is not finite
};

// `peak_bits`: max(|x|) of the group as bits; a NaN is above infinity there.
TESSERA_HOST_DEVICE MergeScale merge_scale(uint32_t peak_bits, float levels) {
  if (peak_bits >= kInfinityBits) return {float_of_bits(kQuietNanBits), true};
  if (peak_bits == 0) return {0.0f, true};
  const float scale = float_of_bits(peak_bits) / levels;
  return {scale < kSmallestNormal ? kSmallestNormal : scale, false};
}

TESSERA_HOST_DEVICE int32_t merge_code(float value, float scale, float levels, bool stochastic,
                                       uint32_t random_word) {
  const float scaled = clamped(value / scale, levels);
  return stochastic ? round_stochastically(scaled, random_word) : round_to_nearest(scaled);
}

TESSERA_HOST_DEVICE float merge_value(int32_t code, float scale) {
  return canonical_nan(static_cast<float>(code) * scale);
}

TESSERA_HOST_DEVICE uint16_t bfloat16_stochastically(float value, uint32_t random_word) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & kMagnitudeMask) >= kInfinityBits) return bfloat16_of_float(value);
  return static_cast<uint16_t>((bits + (random_word & 0xffffu)) >> 16);
}

TESSERA_HOST_DEVICE float merge_factor(float weight, double energy) {
  // A NaN is not above the smallest.
  const bool has_direction = energy > kSmallestMergeEnergy && energy <= kLargestDouble;
  return has_direction ? static_cast<float>(static_cast<double>(weight) / sqrt(energy))
                       : float_of_bits(kQuietNanBits);
}

// Ordered like the numbers, NaNs outside the infinities.
TESSERA_HOST_DEVICE uint32_t ordered_bits(float value) {
  const uint32_t bits = bits_of_float(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
TESSERA_HOST_DEVICE float value_of_ordered(uint32_t ordered) {
  return float_of_bits((ordered & 0x80000000u) != 0 ? ordered & kMagnitudeMask : ~ordered);
}

}  // namespace tessera::kernels
