// The reference of the 8-bit floats.
#include <algorithm>

#include "fp8_math.h"
#include "real_access.h"

namespace tessera::kernels {

float float_of_fp8(uint8_t code, Fp8Format format) {
  const Fp8Shape shape = fp8_shape(format);
  const int magnitude = code & 0x7f;
  const int above = format == Fp8Format::kE4m3 ? 0x7e : 0x7b;  // the largest number's code
  if (magnitude > above) return float_of_bits(kQuietNanBits);
  const int field = magnitude >> shape.mantissa_bits;
  const int mantissa = magnitude & ((1 << shape.mantissa_bits) - 1);
  const int whole = mantissa + (field > 0 ? 1 << shape.mantissa_bits : 0);
  const int exponent = shape.least_exponent + std::max(field - 1, 0) - shape.mantissa_bits;
  const float value = static_cast<float>(whole) * power_of_two(exponent);
  return (code & 0x80) != 0 ? -value : value;
}

void fp8_magnitude_cpu(const Fp8MagnitudeParams& params) {
  TESSERA_CHECK(params.count >= 0 && params.magnitude != nullptr);
  TESSERA_CHECK(params.count == 0 || params.x != nullptr);
  uint32_t largest = 0;
  for (int64_t i = 0; i < params.count; ++i) {
    largest = std::max(largest, bits_of_float(load_real(params.type, params.x, i)) & kMagnitudeMask);
  }
  *params.magnitude = std::min(largest, kInfinityBits);
}

void fp8_quantise_cpu(const Fp8QuantiseParams& params) {
  TESSERA_CHECK(params.rows >= 0 && params.rows % 16 == 0);
  TESSERA_CHECK(params.width >= 16 && params.width % 16 == 0);
  TESSERA_CHECK(params.magnitude != nullptr && params.inverse_scale != nullptr);
  TESSERA_CHECK(params.rows == 0 || params.x != nullptr);
  const int exponent = fp8_scale_exponent(*params.magnitude, params.format);
  const float scale = power_of_two(exponent);
  *params.inverse_scale = power_of_two(-exponent);
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t column = 0; column < params.width; ++column) {
      const int64_t at = row * params.width + column;
      const uint8_t code =
          fp8_of_float(load_real(params.type, params.x, at) * scale, params.format);
      if (params.codes != nullptr) params.codes[at] = code;
      if (params.transposed != nullptr) params.transposed[column * params.rows + row] = code;
    }
  }
}

}  // namespace tessera::kernels
