// The arithmetic of the codecs, written once for the CPU and the CUDA version so that they agree
// bit by bit (docs/numerics.md). C++17. Floats meet only +, -, *, / and sqrt, each correctly
// rounded on both sides; compilers must not contract them (-ffp-contract=off, -fmad=false).
// Everything else is integer work on bit patterns.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// ---- bits of numbers

constexpr uint16_t kHalfQuietNan = 0x7e00u;
constexpr uint16_t kHalfSmallestNormal = 0x0400u;  // 2^-14

// Processors disagree about the sign and payload of the NaN that an operation makes. One pattern
// stands for all.
TESSERA_HOST_DEVICE float canonical_nan(float value) {
  return (bits_of_float(value) & kMagnitudeMask) > kInfinityBits ? float_of_bits(kQuietNanBits)
                                                                 : value;
}

// To nearest even; overflow to infinity, subnormal halves exact.
TESSERA_HOST_DEVICE uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & kMagnitudeMask;
  if (magnitude > kInfinityBits) return kHalfQuietNan;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {
    // Below 2^-14 halves are multiples of 2^-24, and so are the floats in [0.5, 1): the addition
    // does the rounding.
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));  // exponent bias 127 to 15
}

// Exact.
TESSERA_HOST_DEVICE float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return float_of_bits(sign | bits_of_float(magnitude));
  }
  if (exponent == 31) {
    return float_of_bits(mantissa != 0 ? kQuietNanBits : (sign | kInfinityBits));
  }
  return float_of_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// 2^exponent as a normal float, the exponent clamped to [-126, 127].
TESSERA_HOST_DEVICE float power_of_two(int32_t exponent) {
  const int32_t clamped = exponent < -126 ? -126 : exponent > 127 ? 127 : exponent;
  return float_of_bits(static_cast<uint32_t>(clamped + 127) << 23);
}

// ---- Philox4x32-10

struct PhiloxBlock {
  uint32_t word[4];
};

// Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
TESSERA_HOST_DEVICE PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xcd9e8d57u} * counter.word[2];
    const uint32_t word0 = static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0;
    const uint32_t word2 = static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1;
    counter.word[0] = word0;
    counter.word[1] = static_cast<uint32_t>(product1);
    counter.word[2] = word2;
    counter.word[3] = static_cast<uint32_t>(product0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// The random words of four neighbouring columns; `quad` counts them through the frame.
TESSERA_HOST_DEVICE PhiloxBlock rounding_words(uint64_t seed, uint64_t stream, uint64_t quad) {
  const PhiloxBlock counter = {{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32),
                                static_cast<uint32_t>(stream),
                                static_cast<uint32_t>(stream >> 32)}};
  return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// ---- rows

// What the first look at a row finds.
struct RowStatistics {
  // max(|x|) as bits: ordered like the numbers, infinity above them, NaN above infinity.
  uint32_t peak_bits;
  // What normalising divides by (1 without); NaN if it is not finite.
  float divisor;
};

TESSERA_HOST_DEVICE float normalising_divisor(float sum_of_squares, int64_t width, float epsilon) {
  const float divisor = sqrtf(sum_of_squares / static_cast<float>(width) + epsilon);
  return divisor < float_of_bits(kInfinityBits) ? divisor : float_of_bits(kQuietNanBits);
}

// max(|x|) of the numbers to be coded. Division is monotonic, so that dividing the maximum finds
// the maximum.
TESSERA_HOST_DEVICE float peak_of(const RowStatistics& statistics) {
  return float_of_bits(statistics.peak_bits) / statistics.divisor;
}

TESSERA_HOST_DEVICE bool is_finite_peak(float peak) { return peak < float_of_bits(kInfinityBits); }

// 2^e and 2^-e are normal floats for every e an encoder writes.
constexpr int32_t kSmallestExponent = -126;
// The largest peak lies in [2^15, 2^16) after scaling: under fp16's largest number.
constexpr int32_t kHalfHeadroom = 15;

// The exponent e for a row of this peak (>= 0, finite). Monotonic: the largest over all rows is the
// frame's.
TESSERA_HOST_DEVICE int32_t exponent_of_peak(float peak) {
  // A subnormal peak or zero reads as -127: below the clamp in any case.
  const int32_t logarithm = static_cast<int32_t>(bits_of_float(peak) >> 23) - 127;
  const int32_t exponent = logarithm - kHalfHeadroom;
  return exponent < kSmallestExponent ? kSmallestExponent : exponent;
}

// How an integer codec codes one row.
struct RowScale {
  uint16_t half;  // as it goes over the wire
  bool silent;    // every code is 0: a row of zeros, or one that is not finite
  float scale;
};

TESSERA_HOST_DEVICE RowScale row_scale(float peak, float inverse_power, float levels) {
  if (!is_finite_peak(peak)) return {kHalfQuietNan, true, 1.0f};
  if (peak == 0.0f) return {0, true, 1.0f};
  uint16_t half = half_of_float(peak * inverse_power / levels);
  if (half < kHalfSmallestNormal) half = kHalfSmallestNormal;
  return {half, false, float_of_half(half)};
}

// ---- numbers

// 1.5 * 2^23: adding it rounds |v| < 2^22 to a whole number. Neighbouring floats there differ by 1.
constexpr float kRoundingConstant = 12582912.0f;
constexpr int32_t kRoundingBits = 0x4b400000;

// v within [-levels, levels]. (v is not NaN: rows that are not finite never get here.)
TESSERA_HOST_DEVICE float clamped(float v, float levels) {
  const float below = v > levels ? levels : v;
  return below < -levels ? -levels : below;
}

TESSERA_HOST_DEVICE int32_t round_to_nearest(float v) {
  return static_cast<int32_t>(bits_of_float(v + kRoundingConstant)) - kRoundingBits;
}

// floor(v) + [u < v - floor(v)]: whole numbers never move, which floor(v + u) would not promise.
// (Comparisons are used as numbers, not to choose between floats: compilers vectorise that.)
TESSERA_HOST_DEVICE int32_t round_stochastically(float v, uint32_t random_word) {
  const float nearest = (v + kRoundingConstant) - kRoundingConstant;
  const int32_t floor = static_cast<int32_t>(nearest) - static_cast<int32_t>(nearest > v);
  const float fraction = v - static_cast<float>(floor);
  const float uniform =
      static_cast<float>(static_cast<int32_t>(random_word >> 8)) * 5.9604644775390625e-8f;  // 2^-24
  return floor + static_cast<int32_t>(uniform < fraction);
}

TESSERA_HOST_DEVICE float dequantised(int32_t code, float scale, float power) {
  return canonical_nan(static_cast<float>(code) * scale * power);
}

// The number in a two's complement nibble.
TESSERA_HOST_DEVICE int32_t int4_of_nibble(uint32_t nibble) {
  return static_cast<int32_t>((nibble & 0xfu) ^ 8u) - 8;
}

}  // namespace tessera::kernels
