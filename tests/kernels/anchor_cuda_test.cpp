// The anchored boundary's kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/anchor_fixture.h"
#include "kernels/device_fixture.h"

namespace tessera::kernels {
namespace {

class AnchorCuda : public CudaTest {
 protected:
  AnchorForward forward_on_device(const AnchorCase& c, const AnchorNumbers& numbers) {
    return anchor_forward<DeviceBytes>(c, numbers, [&](const AnchorForwardParams& params) {
      EXPECT_EQ(anchor_forward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }
  AnchorBackward backward_on_device(const AnchorCase& c, const AnchorNumbers& numbers,
                                    const AnchorForward& forward) {
    return anchor_backward<DeviceBytes>(
        c, numbers, forward, [&](const AnchorBackwardParams& params) {
          EXPECT_EQ(anchor_backward_cuda(params, stream_), cudaSuccess);
          EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        });
  }

  void expect_agreement(const AnchorCase& c, const AnchorNumbers& numbers) {
    SCOPED_TRACE(name_of(c.type) + " " + std::to_string(c.rows) + "x" + std::to_string(c.width) +
                 (c.vocabulary > 0 ? " table" : "") + (c.keep_u ? " u" : "") +
                 (c.in_place ? " in place" : "") + " offset " + std::to_string(c.offset));
    const AnchorForward expected = anchor_forward<HostBytes>(
        c, numbers, [](const AnchorForwardParams& p) { anchor_forward_cpu(p); });
    const AnchorForward actual = forward_on_device(c, numbers);
    const AnchorScales scales = anchor_scales(c, numbers, expected);
    // A step of u more where the sum comes to lie on the other side of a tie.
    const double step = step_of(c.type, 1.0);
    const auto u_slack = [&](size_t i) {
      return std::isfinite(scales.u[i]) ? 0x1p-22 * scales.u[i] : 0.0;
    };
    const auto y_slack = [&](size_t i) {
      const double rstd = expected.rstd[i / static_cast<size_t>(c.width)];
      return rstd * u_slack(i) + (step + kSumError) * std::abs(expected.y[i]);
    };
    expect_close(actual.u, doubles(expected.u), c.type, u_slack);
    expect_close(actual.rstd, doubles(expected.rstd), Real::kFloat32,
                 [&](size_t i) { return (step + kSumError) * expected.rstd[i]; });
    expect_close(actual.y, doubles(expected.y), c.type, y_slack);
    expect_same_bits(forward_on_device(c, numbers).y, actual.y);

    const AnchorBackward gradient = anchor_backward<HostBytes>(
        c, numbers, expected, [](const AnchorBackwardParams& p) { anchor_backward_cpu(p); });
    const AnchorBackward computed = backward_on_device(c, numbers, expected);
    const double error = kSumError + (c.keep_u ? 0.0 : step);
    expect_close(computed.du, doubles(gradient.du), c.type,
                 [&](size_t i) { return error * scales.du[i]; });
    expect_close(computed.dchannel, doubles(gradient.dchannel), c.type,
                 [&](size_t i) { return error * scales.dchannel[i]; });
    expect_close(computed.gain_gradient, doubles(gradient.gain_gradient), Real::kFloat32,
                 [&](size_t i) { return error * scales.gain_gradient[i]; });
    const AnchorBackward repeated = backward_on_device(c, numbers, expected);
    expect_same_bits(repeated.du, computed.du);
    expect_same_bits(repeated.gain_gradient, computed.gain_gradient);
  }
};

TEST_F(AnchorCuda, AgreesForEveryKindOfWidth) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 8, 9, 250, 256, 512, 768, 1000, 1024, 2048, 4096, 8192, 16384}) {
      for (int variant = 0; variant < 8; ++variant) {
        const AnchorCase c = {type,
                              1 + width % 5 * 3,
                              width,
                              variant % 2 != 0 ? 11 : 0,
                              variant / 2 % 2 != 0,
                              variant / 4 != 0,
                              variant % 3 != 0};
        expect_agreement(c, anchor_numbers(c, static_cast<uint64_t>(width + variant)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(AnchorCuda, AgreesForManyRows) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{9001, 64}, {2801, 768}}) {
    const AnchorCase c = {Real::kBfloat16, rows, width, 100, true, false, true};
    expect_agreement(c, anchor_numbers(c, static_cast<uint64_t>(rows)));
    if (HasFatalFailure()) return;
  }
}

TEST_F(AnchorCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    for (const size_t offset : {1, 2, 4, 7}) {
      const AnchorCase c = {type, 5, 1024, 7, true, false, false, offset};
      expect_agreement(c, anchor_numbers(c, offset));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(AnchorCuda, AgreesForExtremeNumbersAndUnknownIds) {
  const std::vector<float> specials = {0.0f,
                                       1e-40f,
                                       1e-30f,
                                       1e18f,
                                       1e30f,
                                       std::numeric_limits<float>::infinity(),
                                       std::numeric_limits<float>::quiet_NaN()};
  for (const Real type : kReals) {
    const AnchorCase c = {type, static_cast<int64_t>(specials.size()) + 4, 40, 9};
    AnchorNumbers numbers = anchor_numbers(c, 6);
    for (size_t row = 0; row < specials.size(); ++row) {
      std::fill_n(numbers.anchor.begin() + static_cast<int64_t>(row) * 40, 40, specials[row]);
      numbers.ids[row] = static_cast<int32_t>(row);
    }
    std::fill_n(numbers.channel.begin(), 3 * 40, 0.0f);  // rows of nothing but the special number
    numbers.ids[8] = -1;
    numbers.ids[9] = 9;
    numbers.anchor = rounded(type, numbers.anchor);
    expect_agreement(c, numbers);
  }
}

TEST_F(AnchorCuda, NoRowsAndBrokenSizes) {
  const AnchorCase c = {.rows = 0, .width = 300};
  const AnchorNumbers numbers = anchor_numbers(c, 1);
  EXPECT_EQ(backward_on_device(c, numbers, {}).gain_gradient, std::vector<float>(300));
  AnchorForwardParams forward;
  forward.rows = 1;
  forward.width = 4;
  EXPECT_EQ(anchor_forward_cuda(forward, stream_), cudaErrorInvalidValue);
  forward.rank = 3;
  EXPECT_EQ(anchor_forward_cuda(forward, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
