// When is a tensor what it should be? Pure arithmetic of audits: distances, thresholds and what honest rounding explains.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tessera/base/codec.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

// How far `claimed` is from `expected`.
struct Deviation {
  double relative_error = 0;  // |claimed - expected| / |expected|
  double cosine = 1;
  double norm_ratio = 1;      // |claimed| / |expected|
  bool comparable = true;     // false: other sizes, or a number that is not finite
};
Deviation deviation_of(std::span<const float> expected, std::span<const float> claimed);

struct DeviationLimits {
  double relative_error = 0;  // at most
  double cosine = 0;          // at least
  double least_norm_ratio = 0;
  double greatest_norm_ratio = 0;
};
// Empty: within. Else which limit is broken, with both figures.
std::string excess_of(const Deviation& deviation, const DeviationLimits& limits);

// Integer codes amplify noise: two values that differ by little may be rounded to neighbouring codes. If a share of
// `flips` of the codes does that, the decoded tensors are this far apart, relative to their norm:
// sqrt(flips * mean(step^2) / mean(x^2)), step the row's distance between two codes. 0 for codes that are floats.
// `decoded`: [rows, width], as it came out of the payload.
double rounding_allowance(std::span<const float> decoded, uint64_t width, Codec codec, double flips);

// Of a boundary tensor, of a weight delta: both with what rounding explains added.
DeviationLimits tensor_limits(const AuditSpec& audit, double allowance);
DeviationLimits delta_limits(const AuditSpec& audit, double allowance);
// Empty: the same loss within audit.loss_tolerance.
std::string loss_excess(const AuditSpec& audit, double expected, double claimed);

}  // namespace tessera::core
