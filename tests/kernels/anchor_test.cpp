// The reference of the anchored boundary's kernels against the formulas in double precision.
#include <gtest/gtest.h>

#include "kernels/anchor_fixture.h"

namespace tessera::kernels {
namespace {

constexpr double kEpsilon = 1e-5f;
const double kScale = 1.0 / std::sqrt(static_cast<double>(kAnchorRank));
const auto kForward = [](const AnchorForwardParams& p) { anchor_forward_cpu(p); };
const auto kBackward = [](const AnchorBackwardParams& p) { anchor_backward_cpu(p); };

void expect_forward(const AnchorCase& c, const AnchorNumbers& numbers,
                    const AnchorForward& forward) {
  std::vector<double> u(numbers.channel.size());
  std::vector<double> y(u.size());
  std::vector<double> rstds;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t anchor = c.vocabulary > 0 ? numbers.ids[row] : row;
    double squares = 0.0;
    for (int64_t i = 0; i < c.width; ++i) {
      const int64_t at = row * c.width + i;
      u[at] = numbers.anchor[anchor * c.width + i] +
              double{numbers.gain[i]} * numbers.channel[at] * kScale;
      squares += double{forward.u[at]} * forward.u[at];  // the norm is of the rounded numbers
    }
    rstds.push_back(1.0 / std::sqrt(squares / static_cast<double>(c.width) + kEpsilon));
    for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
      y[i] = forward.u[i] * rstds.back();
    }
  }
  const AnchorScales scales = anchor_scales(c, numbers, forward);
  expect_close(forward.u, u, c.type, [&](size_t i) { return 0x1p-22 * scales.u[i]; });
  expect_close(forward.rstd, rstds, Real::kFloat32, [](size_t) { return 0.0; });
  expect_close(forward.y, y, c.type, [](size_t) { return 0.0; });
}

void expect_backward(const AnchorCase& c, const AnchorNumbers& numbers,
                     const AnchorForward& forward, const AnchorBackward& backward) {
  std::vector<double> du(numbers.dy.size());
  std::vector<double> dchannel(du.size());
  std::vector<double> gain_gradient(static_cast<size_t>(c.width));
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t begin = row * c.width;
    const double rstd = forward.rstd[row];
    double products = 0.0;
    for (int64_t i = begin; i < begin + c.width; ++i) {
      products += double{numbers.dy[i]} * forward.u[i];
    }
    for (int64_t i = 0; i < c.width; ++i) {
      du[begin + i] = rstd * numbers.dy[begin + i] - forward.u[begin + i] * rstd * rstd * rstd *
                                                         products / static_cast<double>(c.width);
      dchannel[begin + i] = du[begin + i] * numbers.gain[i] * kScale;
      gain_gradient[i] += du[begin + i] * numbers.channel[begin + i] * kScale;
    }
  }
  for (int64_t i = 0; i < c.width; ++i) gain_gradient[i] += c.accumulate ? numbers.before[i] : 0;
  const AnchorScales scales = anchor_scales(c, numbers, forward);
  expect_close(backward.du, du, c.type, [&](size_t i) { return 0x1p-20 * scales.du[i]; });
  expect_close(backward.dchannel, dchannel, c.type,
               [&](size_t i) { return 0x1p-20 * scales.dchannel[i]; });
  expect_close(backward.gain_gradient, gain_gradient, Real::kFloat32,
               [&](size_t i) { return 0x1p-20 * scales.gain_gradient[i]; });
}

TEST(Anchor, MatchesTheFormulas) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 5, 8, 40, 300}) {
      for (int variant = 0; variant < 8; ++variant) {
        const AnchorCase c = {
            type, 1 + width % 7,        width,           variant % 2 != 0 ? 11 : 0,
            true, variant / 2 % 2 != 0, variant / 4 != 0};
        SCOPED_TRACE(name_of(type) + " width " + std::to_string(width) + " variant " +
                     std::to_string(variant));
        const AnchorNumbers numbers = anchor_numbers(c, static_cast<uint64_t>(width + variant));
        const AnchorForward forward = anchor_forward<HostBytes>(c, numbers, kForward);
        expect_forward(c, numbers, forward);
        const AnchorBackward backward = anchor_backward<HostBytes>(c, numbers, forward, kBackward);
        expect_backward(c, numbers, forward, backward);

        AnchorCase forgetful = c;  // makes u again, the same one
        forgetful.keep_u = false;
        expect_same_bits(anchor_forward<HostBytes>(forgetful, numbers, kForward).y, forward.y);
        const AnchorBackward again =
            anchor_backward<HostBytes>(forgetful, numbers, forward, kBackward);
        expect_same_bits(again.du, backward.du);
        expect_same_bits(again.gain_gradient, backward.gain_gradient);
      }
    }
  }
}

TEST(Anchor, UnknownIdsAreNan) {
  const AnchorCase c = {Real::kBfloat16, 3, 4, 5};
  AnchorNumbers numbers = anchor_numbers(c, 1);
  numbers.ids = {-1, 2, 5};
  const AnchorForward forward = anchor_forward<HostBytes>(c, numbers, kForward);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(std::isnan(forward.y[i]), i / 4 != 1);
}

TEST(AnchorDeathTest, BrokenSizesAbort) {
  AnchorForwardParams forward;
  forward.rows = 1;
  forward.width = 4;
  EXPECT_DEATH(anchor_forward_cpu(forward), "");  // no rank
  forward.rank = 3;
  EXPECT_DEATH(anchor_forward_cpu(forward), "");  // no memory
  AnchorBackwardParams backward;
  backward.width = 4;
  backward.rank = 3;
  EXPECT_DEATH(anchor_backward_cpu(backward), "");
}

}  // namespace
}  // namespace tessera::kernels
