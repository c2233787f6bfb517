// Deterministic numbers for kernels' tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "tessera/base/prng.h"

namespace tessera::kernels {

// Rows like gradients: about normal within a row, row magnitudes spread over 2^-8..2^8.
inline std::vector<float> random_rows(int64_t rows, int64_t width, uint64_t seed) {
  Prng prng(seed);
  std::vector<float> values(static_cast<size_t>(rows * width));
  for (int64_t row = 0; row < rows; ++row) {
    const double magnitude = std::exp2(16.0 * prng.uniform() - 8.0);
    for (int64_t column = 0; column < width; ++column) {
      double sum = -6.0;
      for (int i = 0; i < 12; ++i) sum += prng.uniform();
      values[row * width + column] = static_cast<float>(magnitude * sum);
    }
  }
  return values;
}

}  // namespace tessera::kernels
