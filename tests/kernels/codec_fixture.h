// What the codec tests share: deterministic numbers, guarded buffers, and a reference of the
// formats written in double precision from the description in the header, without the code under
// test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/guarded.h"
#include "kernels/random_rows.h"
#include "tessera/kernels/codec.h"

namespace tessera::kernels {

struct Encoded {
  std::vector<uint8_t> payload;
  int32_t exponent = 0;
};

struct EncodeOptions {
  bool normalise = false;
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t stream = 0;
};

inline EncodeParams params_of(const float* input, int64_t rows, int64_t width, Codec codec,
                              const EncodeOptions& options) {
  EncodeParams params;
  params.input = input;
  params.rows = rows;
  params.width = width;
  params.codec = codec;
  params.normalise = options.normalise;
  params.stochastic = options.stochastic;
  params.seed = options.seed;
  params.stream = options.stream;
  return params;
}

inline Encoded encode(const std::vector<float>& input, int64_t rows, int64_t width, Codec codec,
                      const EncodeOptions& options = {}) {
  Guarded<uint8_t> payload(payload_bytes(codec, rows, width));
  Guarded<int32_t> exponent(1);
  EncodeParams params = params_of(input.data(), rows, width, codec, options);
  params.payload = payload.data();
  params.exponent = exponent.data();
  encode_cpu(params);
  return {payload.copy(), exponent.copy()[0]};
}

inline std::vector<float> decode(const Encoded& encoded, int64_t rows, int64_t width, Codec codec) {
  Guarded<float> output(rows * width);
  decode_cpu({.payload = encoded.payload.data(),
              .exponent = encoded.exponent,
              .rows = rows,
              .width = width,
              .codec = codec,
              .output = output.data()});
  return output.copy();
}

inline std::string name_of(Codec codec) {
  return codec == Codec::kFp32   ? "fp32"
         : codec == Codec::kBf16 ? "bf16"
         : codec == Codec::kInt8 ? "int8"
                                 : "int4";
}

// ---- the formats, read from the description

// The nearest number with `mantissa_bits` stored bits of mantissa and the smallest normal exponent
// `smallest`.
inline double nearest_in_format(double x, int mantissa_bits, int smallest) {
  if (x == 0.0) return x;
  const int exponent = std::max(std::ilogb(x), smallest);
  const double unit = std::ldexp(1.0, exponent - mantissa_bits);
  return std::nearbyint(x / unit) * unit;
}
inline double nearest_half(double x) {
  const double rounded = nearest_in_format(x, 10, -14);
  return std::abs(rounded) > 65504.0 ? std::copysign(HUGE_VAL, rounded) : rounded;
}
inline double nearest_bfloat16(double x) {
  const double rounded = nearest_in_format(x, 7, -126);
  return std::abs(rounded) >= 0x1p128 ? std::copysign(HUGE_VAL, rounded) : rounded;
}

inline double value_of_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * HUGE_VAL;
  return sign *
         (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

inline double scale_of(const Encoded& encoded, int64_t row) {
  return value_of_half(
      static_cast<uint16_t>(encoded.payload[2 * row] | (encoded.payload[2 * row + 1] << 8)));
}

inline int code_of(const Encoded& encoded, int64_t rows, int64_t width, Codec codec, int64_t row,
                   int64_t column) {
  const size_t row_begin = rows * 2 + row * row_code_bytes(codec, width);
  if (codec == Codec::kInt8) return static_cast<int8_t>(encoded.payload[row_begin + column]);
  const int nibble = (encoded.payload[row_begin + column / 2] >> (column % 2 * 4)) & 15;
  return nibble >= 8 ? nibble - 16 : nibble;
}

}  // namespace tessera::kernels
