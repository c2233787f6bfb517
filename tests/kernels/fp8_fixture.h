// What the tests of the 8-bit floats share.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/fp8.h"

namespace tessera::kernels {

constexpr Fp8Format kFp8Formats[] = {Fp8Format::kE4m3, Fp8Format::kE5m2};

inline std::string name_of(Fp8Format format) {
  return format == Fp8Format::kE4m3 ? "e4m3" : "e5m2";
}

struct Fp8Result {
  uint32_t magnitude = 0;
  float inverse_scale = 0;
  std::vector<uint8_t> codes, transposed;
};

// Both passes over `x` in memory of type Bytes; `find` and `quantise` run the kernels.
template <class Bytes, class Find, class Quantise>
Fp8Result fp8_of(Real type, Fp8Format format, int64_t rows, int64_t width,
                 const std::vector<float>& x, Find find, Quantise quantise) {
  const size_t count = x.size();
  Reals<Bytes> numbers(type, x);
  Array<Bytes, uint32_t> magnitude(1);
  Array<Bytes, float> inverse_scale(1);
  Array<Bytes, uint8_t> codes(count), transposed(count);
  Fp8MagnitudeParams first;
  first.type = type;
  first.count = static_cast<int64_t>(count);
  first.x = numbers.data_or_null();
  first.magnitude = magnitude.data();
  find(first);
  Fp8QuantiseParams second;
  second.type = type;
  second.format = format;
  second.rows = rows;
  second.width = width;
  second.x = numbers.data_or_null();
  second.magnitude = magnitude.data();
  second.codes = codes.data_or_null();
  second.transposed = transposed.data_or_null();
  second.inverse_scale = inverse_scale.data();
  quantise(second);
  return {magnitude.values()[0], inverse_scale.values()[0], codes.values(), transposed.values()};
}

inline Fp8Result fp8_on_host(Real type, Fp8Format format, int64_t rows, int64_t width,
                             const std::vector<float>& x) {
  return fp8_of<HostBytes>(
      type, format, rows, width, x, [](const Fp8MagnitudeParams& p) { fp8_magnitude_cpu(p); },
      [](const Fp8QuantiseParams& p) { fp8_quantise_cpu(p); });
}

// Zeros, subnormal, tiny and large numbers of both signs among usual ones.
inline std::vector<float> extreme_reals(Real type, int64_t rows, int64_t width, uint64_t seed) {
  constexpr float kNumbers[] = {0.0f,  -0.0f, 1e-40f, -1e-40f, 1e-30f, -3e-8f, 2e-6f,
                                1.75f, -448.0f, 449.0f, 57344.0f, -6e4f, 1e10f, -2e30f};
  std::vector<float> x = random_reals(type, rows, width, seed);
  for (size_t i = 0; i < x.size(); i += 3) x[i] = kNumbers[(i / 3) % std::size(kNumbers)];
  return rounded(type, x);
}

}  // namespace tessera::kernels
