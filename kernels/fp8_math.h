// The arithmetic of the 8-bit floats, shared by the CPU and the CUDA version. C++17.
#pragma once

#include <cmath>

#include "tessera/kernels/fp8.h"

namespace tessera::kernels {

struct Fp8Shape {
  int mantissa_bits;
  int least_exponent;  // of the normal numbers
  float largest;
};

TESSERA_HOST_DEVICE Fp8Shape fp8_shape(Fp8Format format) {
  return format == Fp8Format::kE4m3 ? Fp8Shape{3, -6, 448.0f} : Fp8Shape{2, -14, 57344.0f};
}

// 2^exponent, -126 to 127.
TESSERA_HOST_DEVICE float power_of_two(int exponent) {
  return float_of_bits(static_cast<uint32_t>(exponent + 127) << 23);
}

// The exponent e of a tensor's scale, from the bits of its magnitude.
TESSERA_HOST_DEVICE int fp8_scale_exponent(uint32_t magnitude, Fp8Format format) {
  if (magnitude == 0 || magnitude >= kInfinityBits) return 0;
  // 448 = 1.75 * 2^8, 57344 = 1.75 * 2^15.
  const int top = format == Fp8Format::kE4m3 ? 8 : 15;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;  // below normal numbers: -127
  const bool above = (magnitude & 0x7fffffu) > 0x600000u;        // 1.75
  const int scale = top - exponent - (above ? 1 : 0);
  return scale > 126 ? 126 : scale < -126 ? -126 : scale;
}

// To nearest even; past the largest number, that one.
TESSERA_HOST_DEVICE uint8_t fp8_of_float(float value, Fp8Format format) {
  const Fp8Shape shape = fp8_shape(format);
  const uint32_t bits = bits_of_float(value);
  if ((bits & kMagnitudeMask) >= kInfinityBits) return kFp8Nan;
  const uint8_t sign = static_cast<uint8_t>(bits >> 31 << 7);
  float magnitude = float_of_bits(bits & kMagnitudeMask);
  if (magnitude > shape.largest) magnitude = shape.largest;
  int exponent = static_cast<int>(bits_of_float(magnitude) >> 23) - 127;
  if (exponent < shape.least_exponent) exponent = shape.least_exponent;
  // In whole steps: adding and taking away 2^23 rounds to nearest even.
  const float steps = magnitude * power_of_two(shape.mantissa_bits - exponent);
  const float whole = (steps + 8388608.0f) - 8388608.0f;
  const int code = ((exponent - shape.least_exponent) << shape.mantissa_bits) + static_cast<int>(whole);
  return static_cast<uint8_t>(sign | code);
}

}  // namespace tessera::kernels
