#include "tessera/core/audit_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tessera/base/status.h"

namespace tessera::core {

Deviation deviation_of(std::span<const float> expected, std::span<const float> claimed) {
  Deviation deviation;
  if (expected.size() != claimed.size()) {
    deviation.comparable = false;
    return deviation;
  }
  double expected_squares = 0, claimed_squares = 0, product = 0, error_squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = expected[i], c = claimed[i];
    expected_squares += e * e;
    claimed_squares += c * c;
    product += e * c;
    error_squares += (c - e) * (c - e);
  }
  if (!std::isfinite(expected_squares) || !std::isfinite(claimed_squares)) {
    deviation.comparable = false;
    return deviation;
  }
  if (expected_squares == 0 && claimed_squares == 0) return deviation;
  if (expected_squares == 0 || claimed_squares == 0) {
    // Nothing where something should be, or the other way round: as far apart as can be.
    deviation.relative_error = 1;
    deviation.cosine = 0;
    deviation.norm_ratio = claimed_squares == 0 ? 0 : HUGE_VAL;
    return deviation;
  }
  deviation.relative_error = std::sqrt(error_squares / expected_squares);
  deviation.cosine = product / std::sqrt(expected_squares * claimed_squares);
  deviation.norm_ratio = std::sqrt(claimed_squares / expected_squares);
  return deviation;
}

std::string excess_of(const Deviation& deviation, const DeviationLimits& limits) {
  if (!deviation.comparable) return "it has another size, or numbers that are not finite";
  if (deviation.relative_error > limits.relative_error) {
    return fmt::format("relative error {:.4g}, at most {:.4g} is allowed", deviation.relative_error, limits.relative_error);
  }
  if (deviation.cosine < limits.cosine) {
    return fmt::format("cosine {:.6f}, at least {:.6f} is needed", deviation.cosine, limits.cosine);
  }
  if (deviation.norm_ratio < limits.least_norm_ratio || deviation.norm_ratio > limits.greatest_norm_ratio) {
    return fmt::format("norm ratio {:.4f}, {:.4f} to {:.4f} is allowed", deviation.norm_ratio, limits.least_norm_ratio,
                       limits.greatest_norm_ratio);
  }
  return "";
}

double rounding_allowance(std::span<const float> decoded, uint64_t width, Codec codec, double flips) {
  if (!has_scales(codec) || decoded.empty()) return 0;
  TESSERA_CHECK(width > 0 && decoded.size() % width == 0);
  const double codes = codec == Codec::kInt8 ? 127 : 7;  // of the row's largest number
  double squares = 0, step_squares = 0;
  for (size_t row = 0; row < decoded.size(); row += width) {
    double largest = 0;
    for (const float value : decoded.subspan(row, width)) {
      largest = std::max(largest, std::abs(static_cast<double>(value)));
      squares += static_cast<double>(value) * value;
    }
    step_squares += static_cast<double>(width) * (largest / codes) * (largest / codes);
  }
  return squares > 0 && std::isfinite(squares) ? std::sqrt(flips * step_squares / squares) : 0;
}

DeviationLimits tensor_limits(const AuditSpec& audit, double allowance) {
  const double squared = allowance * allowance;
  return {.relative_error = std::sqrt(audit.relative_error * audit.relative_error + squared),
          .cosine = audit.cosine - squared / 2,
          .least_norm_ratio = 1 - audit.norm_deviation - squared,
          .greatest_norm_ratio = 1 + audit.norm_deviation + squared};
}

DeviationLimits delta_limits(const AuditSpec& audit, double allowance) {
  const double squared = allowance * allowance;
  return {.relative_error = HUGE_VAL,
          .cosine = audit.delta_cosine - squared / 2,
          .least_norm_ratio = 1 - audit.delta_norm_deviation - squared,
          .greatest_norm_ratio = 1 + audit.delta_norm_deviation + squared};
}

std::string loss_excess(const AuditSpec& audit, double expected, double claimed) {
  const double limit = audit.loss_tolerance * std::max(1.0, std::abs(expected));
  if (std::abs(claimed - expected) <= limit) return "";  // false for what is not a number
  return fmt::format("loss {:.6g}, it is {:.6g} and may differ by {:.3g}", claimed, expected, limit);
}

}  // namespace tessera::core
