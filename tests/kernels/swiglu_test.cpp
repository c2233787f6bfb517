// The reference of the SwiGLU kernels against the formulas of the header in double precision.
#include <gtest/gtest.h>

#include "kernels/swiglu_fixture.h"

namespace tessera::kernels {
namespace {

const auto kForward = [](const SwigluForwardParams& p) { swiglu_forward_cpu(p); };
const auto kBackward = [](const SwigluBackwardParams& p) { swiglu_backward_cpu(p); };

double silu(double v) { return v / (1.0 + std::exp(-v)); }

TEST(Swiglu, MatchesTheFormulas) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 3, 8, 31, 64, 100}) {
      for (const bool in_place : {false, true}) {
        const SwigluCase c = {type, 1 + width % 4, width, in_place};
        SCOPED_TRACE(name_of(type) + " width " + std::to_string(width));
        const SwigluNumbers numbers = swiglu_numbers(c, static_cast<uint64_t>(width));
        std::vector<double> h(numbers.dh.size());
        std::vector<double> gradient(numbers.gate_up.size());
        for (int64_t row = 0; row < c.rows; ++row) {
          for (int64_t i = 0; i < width; ++i) {
            const int64_t at = row * 2 * width + i;
            const double gate = numbers.gate_up[at];
            const double up = numbers.gate_up[at + width];
            const double dh = numbers.dh[row * width + i];
            const double s = 1.0 / (1.0 + std::exp(-gate));
            h[row * width + i] = silu(gate) * up;
            gradient[at] = dh * up * s * (1.0 + gate * (1.0 - s));
            gradient[at + width] = dh * silu(gate);
          }
        }
        const SwigluScales scales = swiglu_scales(c, numbers);
        const auto h_slack = [&](size_t i) { return 0x1p-16 * scales.h[i]; };
        const auto gradient_slack = [&](size_t i) { return 0x1p-16 * scales.gate_up[i]; };
        expect_close(swiglu_forward<HostBytes>(c, numbers, kForward), h, type, h_slack);
        const SwigluGradient result = swiglu_backward<HostBytes>(c, numbers, kBackward);
        expect_close(result.h, h, type, h_slack);
        expect_close(result.gate_up, gradient, type, gradient_slack);
      }
    }
  }
}

// Also where the formulas of the gradient cancel: at silu's minimum, near -1.2785.
TEST(Swiglu, GradientIsTheDerivative) {
  const SwigluCase c = {Real::kFloat32, 1, 5};
  const SwigluNumbers numbers = {
      {-20.0f, -1.27846f, 0.0f, 0.7f, 9.0f, 2.0f, -3.0f, 0.5f, -1.0f, 4.0f},
      {1.0f, 2.0f, -3.0f, 0.25f, -0.5f}};
  const SwigluGradient gradient = swiglu_backward<HostBytes>(c, numbers, kBackward);
  for (int i = 0; i < 5; ++i) {
    const double gate = numbers.gate_up[i];
    const double up = numbers.gate_up[5 + i];
    const double dh = numbers.dh[i];
    EXPECT_NEAR(gradient.gate_up[i], dh * up * (silu(gate + 1e-6) - silu(gate - 1e-6)) / 2e-6,
                1e-5);
    EXPECT_NEAR(gradient.gate_up[5 + i], dh * silu(gate), 1e-5);
  }
}

TEST(Swiglu, ExtremeGates) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const SwigluCase c = {Real::kFloat32, 1, 6};
  const SwigluNumbers numbers = {
      {-1e30f, 1e30f, 0.0f, -kInfinity, kInfinity, kNan, 2.0f, 2.0f, 2.0f, 2.0f, 2.0f, 2.0f},
      {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}};
  const std::vector<float> h = swiglu_forward<HostBytes>(c, numbers, kForward);
  EXPECT_EQ(h[0], 0.0f);
  EXPECT_EQ(h[1], 2e30f);
  EXPECT_EQ(h[2], 0.0f);
  EXPECT_TRUE(std::isnan(h[3]));
  EXPECT_EQ(h[4], kInfinity);
  EXPECT_TRUE(std::isnan(h[5]));
  const SwigluGradient gradient = swiglu_backward<HostBytes>(c, numbers, kBackward);
  EXPECT_EQ(gradient.gate_up[0], 0.0f);
  EXPECT_EQ(gradient.gate_up[1], 2.0f);
  EXPECT_EQ(gradient.gate_up[2], 1.0f);
}

TEST(SwigluDeathTest, BrokenSizesAbort) {
  EXPECT_DEATH(swiglu_forward_cpu({.rows = 1, .width = 0}), "");
  EXPECT_DEATH(swiglu_backward_cpu({.rows = 1, .width = 8}), "");
}

}  // namespace
}  // namespace tessera::kernels
