// The reference of the cross-entropy kernels. Exponentials and sums are in fp64.
#include <cmath>
#include <limits>

#include "real_access.h"
#include "tessera/kernels/cross_entropy.h"

namespace tessera::kernels {
namespace {

void write_gradient(const CrossEntropyParams& params, int64_t begin, int32_t target, double peak,
                    double sum, bool valid) {
  for (int64_t column = 0; column < params.columns; ++column) {
    float gradient = 0.0f;
    if (valid && column < params.vocabulary) {
      const double logit = load_real(params.type, params.logits, begin + column);
      double share = std::exp(logit - peak) / sum;
      if (column == target) share -= 1.0;
      gradient = static_cast<float>(share * params.scale);
    }
    store_real(params.type, params.logits, begin + column, gradient);
  }
}

}  // namespace

void cross_entropy_cpu(const CrossEntropyParams& params) {
  TESSERA_CHECK(are_cross_entropy_sizes(params));
  TESSERA_CHECK(params.rows == 0 || (params.logits != nullptr && params.targets != nullptr &&
                                     params.losses != nullptr));
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t begin = row * params.columns;
    const int32_t target = params.targets[row];
    const bool valid = target >= 0 && target < params.vocabulary;
    double peak = -std::numeric_limits<double>::infinity();
    double sum = 0.0;
    for (int64_t column = 0; valid && column < params.vocabulary; ++column) {
      const double logit = load_real(params.type, params.logits, begin + column);
      if (logit > peak) peak = logit;  // not NaN
    }
    for (int64_t column = 0; valid && column < params.vocabulary; ++column) {
      sum += std::exp(load_real(params.type, params.logits, begin + column) - peak);
    }
    params.losses[row] =
        valid ? static_cast<float>(std::log(sum) + peak -
                                   load_real(params.type, params.logits, begin + target))
              : std::numeric_limits<float>::quiet_NaN();
    if (params.gradient) write_gradient(params, begin, target, peak, sum, valid);
  }
}

}  // namespace tessera::kernels
