// The reference of the norm kernels. Sums are in fp64, everything else in fp32.
#include <vector>

#include "real_access.h"
#include "row_shape.h"
#include "stage_math.h"
#include "tessera/kernels/norm.h"

namespace tessera::kernels {

int64_t norm_partial_rows(int64_t rows, int64_t width) {
  check_row_sizes(rows, width);
  return column_sum_blocks(rows, width);
}

void residual_norm_forward_cpu(const ResidualNormForwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(params.epsilon > 0.0f);
  TESSERA_CHECK((params.delta == nullptr) == (params.sum == nullptr));
  TESSERA_CHECK(params.rows == 0 || (params.x != nullptr && params.y != nullptr));
  std::vector<float> values(static_cast<size_t>(params.width));
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t begin = row * params.width;
    double squares = 0.0;
    for (int64_t column = 0; column < params.width; ++column) {
      float& value = values[column];
      value = load_real(params.type, params.x, begin + column);
      if (params.delta != nullptr) {
        value += load_real(params.type, params.delta, begin + column);
        value = round_real(params.type, value);
        store_real(params.type, params.sum, begin + column, value);
      }
      squares += double{value} * value;
    }
    const float rstd = reciprocal_rms(static_cast<float>(squares), params.width, params.epsilon);
    if (params.rstd != nullptr) params.rstd[row] = rstd;
    for (int64_t column = 0; column < params.width; ++column) {
      const float weight =
          params.weight != nullptr ? load_real(params.type, params.weight, column) : 1.0f;
      store_real(params.type, params.y, begin + column, values[column] * rstd * weight);
    }
  }
}

void norm_backward_cpu(const NormBackwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rows == 0 || (params.dy != nullptr && params.sum != nullptr &&
                                     params.rstd != nullptr && params.dx != nullptr));
  const Real type = params.type;
  std::vector<double> weight_sums(static_cast<size_t>(params.width));
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t begin = row * params.width;
    const float rstd = params.rstd[row];
    double products = 0.0;
    for (int64_t column = 0; column < params.width; ++column) {
      const float n = load_real(type, params.sum, begin + column) * rstd;
      const float dy = load_real(type, params.dy, begin + column);
      const float weight = params.weight != nullptr ? load_real(type, params.weight, column) : 1.0f;
      products += double{dy} * weight * n;
      weight_sums[column] += double{dy} * n;
    }
    const float mean = static_cast<float>(products / static_cast<double>(params.width));
    for (int64_t column = 0; column < params.width; ++column) {
      const float n = load_real(type, params.sum, begin + column) * rstd;
      const float weight = params.weight != nullptr ? load_real(type, params.weight, column) : 1.0f;
      const float g = load_real(type, params.dy, begin + column) * weight;
      const float residual =
          params.dresidual != nullptr ? load_real(type, params.dresidual, begin + column) : 0.0f;
      store_real(type, params.dx, begin + column, norm_gradient(g, n, mean, rstd) + residual);
      if (params.y != nullptr) store_real(type, params.y, begin + column, n * weight);
    }
  }
  if (params.weight_gradient == nullptr) return;
  for (int64_t column = 0; column < params.width; ++column) {
    const float before = params.accumulate ? params.weight_gradient[column] : 0.0f;
    params.weight_gradient[column] = before + static_cast<float>(weight_sums[column]);
  }
}

}  // namespace tessera::kernels
