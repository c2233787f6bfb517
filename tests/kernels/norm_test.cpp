// The reference of the norm kernels against the formulas of the header in double precision.
#include <gtest/gtest.h>

#include "kernels/norm_fixture.h"

namespace tessera::kernels {
namespace {

constexpr double kEpsilon = 1e-5f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const auto kForward = [](const ResidualNormForwardParams& p) { residual_norm_forward_cpu(p); };
const auto kBackward = [](const NormBackwardParams& p) { norm_backward_cpu(p); };

void expect_forward(const NormCase& c, const NormNumbers& numbers, const NormForward& forward) {
  std::vector<double> sums(numbers.x.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = double{numbers.x[i]} + (c.delta ? double{numbers.delta[i]} : 0.0);
  }
  expect_close(forward.sum, sums, c.type, [](size_t) { return 0.0; });
  std::vector<double> rstds(static_cast<size_t>(c.rows));
  std::vector<double> y(sums.size());
  for (int64_t row = 0; row < c.rows; ++row) {
    double squares = 0.0;
    const float* values = forward.sum.data() + row * c.width;
    for (int64_t i = 0; i < c.width; ++i) squares += double{values[i]} * values[i];
    rstds[row] = 1.0 / std::sqrt(squares / static_cast<double>(c.width) + kEpsilon);
    for (int64_t i = 0; i < c.width; ++i) {
      y[row * c.width + i] = values[i] * rstds[row] * (c.weight ? numbers.weight[i] : 1.0);
    }
  }
  expect_close(forward.rstd, rstds, Real::kFloat32, [](size_t) { return 0.0; });
  expect_close(forward.y, y, c.type, [](size_t) { return 0.0; });
}

void expect_backward(const NormCase& c, const NormNumbers& numbers, const NormForward& forward,
                     const NormBackward& backward) {
  const auto width = static_cast<double>(c.width);
  std::vector<double> dx(numbers.x.size());
  std::vector<double> weight_gradient(static_cast<size_t>(c.width));
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t begin = row * c.width;
    const double rstd = forward.rstd[row];
    double products = 0.0;
    for (int64_t i = 0; i < c.width; ++i) {
      const double weight = c.weight ? numbers.weight[i] : 1.0;
      products += numbers.dy[begin + i] * weight * forward.sum[begin + i];
      weight_gradient[i] += double{numbers.dy[begin + i]} * forward.sum[begin + i] * rstd;
    }
    for (int64_t i = 0; i < c.width; ++i) {
      const double weight = c.weight ? numbers.weight[i] : 1.0;
      dx[begin + i] = rstd * numbers.dy[begin + i] * weight -
                      forward.sum[begin + i] * rstd * rstd * rstd * products / width;
      if (c.delta) dx[begin + i] += numbers.dresidual[begin + i];
    }
  }
  const std::vector<double> scales = gradient_scales(c, numbers, forward);
  expect_close(backward.dx, dx, c.type,
               [&](size_t i) { return 0x1p-21 * scales[i / static_cast<size_t>(c.width)]; });
  if (!c.weight) return;
  for (int64_t i = 0; i < c.width; ++i) weight_gradient[i] += c.accumulate ? numbers.before[i] : 0;
  const std::vector<double> sums = weight_gradient_scales(c, numbers, forward);
  expect_close(backward.weight_gradient, weight_gradient, Real::kFloat32,
               [&](size_t i) { return 0x1p-21 * sums[i]; });
}

TEST(Norm, MatchesTheFormulas) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 2, 3, 7, 8, 9, 31, 64, 255, 256, 257, 768, 1000}) {
      for (int variant = 0; variant < 16; ++variant) {
        const NormCase c = {type,
                            1 + width % 5,
                            width,
                            variant % 2 != 0,
                            variant / 2 % 2 != 0,
                            variant / 4 % 2 != 0,
                            variant / 8 % 2 != 0};
        SCOPED_TRACE(name_of(type) + " width " + std::to_string(width) + " variant " +
                     std::to_string(variant));
        const NormNumbers numbers = norm_numbers(c, static_cast<uint64_t>(width + variant));
        const NormForward forward = norm_forward<HostBytes>(c, numbers, kForward);
        expect_forward(c, numbers, forward);
        const NormBackward backward = norm_backward<HostBytes>(c, numbers, forward, kBackward);
        expect_backward(c, numbers, forward, backward);
        if (!c.in_place) expect_same_bits(backward.y, forward.y);
      }
    }
  }
}

// The gradient is the derivative: a small step along a direction changes <dy, y> as dx says.
TEST(Norm, GradientIsTheDerivative) {
  const NormCase c = {.type = Real::kFloat32, .rows = 3, .width = 40, .delta = false};
  NormNumbers numbers = norm_numbers(c, 7);
  const NormForward forward = norm_forward<HostBytes>(c, numbers, kForward);
  const NormBackward backward = norm_backward<HostBytes>(c, numbers, forward, kBackward);
  const std::vector<float> direction = random_rows(c.rows, c.width, 99);
  for (int64_t row = 0; row < c.rows; ++row) {
    // In double precision, apart from the kernel.
    const auto value = [&](double step) {
      double squares = 0.0;
      double product = 0.0;
      for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
        const double x = numbers.x[i] + step * direction[i];
        squares += x * x;
        product += x * numbers.weight[i % c.width] * numbers.dy[i];
      }
      return product / std::sqrt(squares / static_cast<double>(c.width) + kEpsilon);
    };
    double slope = 0.0;
    double magnitude = 0.0;
    for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
      slope += double{backward.dx[i]} * direction[i];
      magnitude += std::abs(double{backward.dx[i]} * direction[i]);
    }
    const double step =
        1e-5 * row_peaks(numbers.x, c.width)[row] / row_peaks(direction, c.width)[row];
    EXPECT_NEAR((value(step) - value(-step)) / (2 * step), slope, 1e-5 * magnitude);
  }
}

TEST(Norm, ExtremeRowsStayByThemselves) {
  constexpr int64_t kWidth = 20;
  const std::vector<float> specials = {0.0f, 1e-40f, 1e-30f, 1e18f, 1e30f, kInfinity, kNan};
  for (const Real type : kReals) {
    const NormCase c = {.type = type,
                        .rows = 2 * static_cast<int64_t>(specials.size()),
                        .width = kWidth,
                        .delta = false};
    NormNumbers numbers = norm_numbers(c, 3);
    const NormForward usual = norm_forward<HostBytes>(c, numbers, kForward);
    for (int64_t i = 0; i < c.rows * kWidth; ++i) {
      const int64_t row = i / kWidth;
      if (row % 2 == 1) numbers.x[i] = i % 2 == 0 ? specials[row / 2] : -specials[row / 2];
    }
    numbers.x = rounded(type, numbers.x);
    const NormForward forward = norm_forward<HostBytes>(c, numbers, kForward);
    for (int64_t i = 0; i < c.rows * kWidth; ++i) {
      const int64_t row = i / kWidth;
      const float special = specials[row / 2];
      if (row % 2 == 0) {
        EXPECT_EQ(forward.y[i], usual.y[i]);
      } else if (std::isnan(special)) {
        EXPECT_TRUE(std::isnan(forward.y[i]));
      } else if (std::isinf(special)) {  // infinity * 0
        EXPECT_TRUE(std::isnan(forward.y[i]));
      } else if (special == 1e30f) {  // the squares overflow
        EXPECT_EQ(forward.rstd[row], 0.0f);
        EXPECT_EQ(forward.y[i], 0.0f);
      } else {
        const double expected = numbers.x[i] / std::sqrt(double{special} * special + kEpsilon) *
                                numbers.weight[i % kWidth];
        EXPECT_NEAR(forward.y[i], expected, std::abs(expected) * 0x1p-6 + 1e-40);
      }
    }
  }
}

TEST(Norm, NoRowsLeaveOrClearTheWeightGradient) {
  NormCase c = {.rows = 0, .width = 5};
  const NormNumbers numbers = norm_numbers(c, 1);
  EXPECT_EQ(norm_backward<HostBytes>(c, numbers, {}, kBackward).weight_gradient,
            std::vector<float>(5));
  c.accumulate = true;
  EXPECT_EQ(norm_backward<HostBytes>(c, numbers, {}, kBackward).weight_gradient, numbers.before);
}

TEST(Norm, PartialsAreFew) {
  for (int64_t width = 1; width <= kMaximumRowWidth; ++width) {
    EXPECT_LE(norm_partial_rows(1 << 20, width), 792);
    EXPECT_LE(norm_partial_rows(3, width), 3);
  }
}

TEST(NormDeathTest, BrokenSizesAbort) {
  EXPECT_DEATH(residual_norm_forward_cpu({.rows = 1, .width = 0}), "");
  EXPECT_DEATH(residual_norm_forward_cpu({.rows = 1, .width = kMaximumRowWidth + 1}), "");
  EXPECT_DEATH(residual_norm_forward_cpu({.rows = 1, .width = 4}), "");
  EXPECT_DEATH(norm_backward_cpu({.rows = -1, .width = 4}), "");
}

}  // namespace
}  // namespace tessera::kernels
