// The norm kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/norm_fixture.h"

namespace tessera::kernels {
namespace {

class NormCuda : public CudaTest {
 protected:
  NormForward forward_on_device(const NormCase& c, const NormNumbers& numbers) {
    return norm_forward<DeviceBytes>(c, numbers, [&](const ResidualNormForwardParams& params) {
      EXPECT_EQ(residual_norm_forward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }
  NormBackward backward_on_device(const NormCase& c, const NormNumbers& numbers,
                                  const NormForward& forward) {
    return norm_backward<DeviceBytes>(c, numbers, forward, [&](const NormBackwardParams& params) {
      EXPECT_EQ(norm_backward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }

  void expect_agreement(const NormCase& c, const NormNumbers& numbers) {
    SCOPED_TRACE(name_of(c.type) + " " + std::to_string(c.rows) + "x" + std::to_string(c.width) +
                 (c.delta ? " delta" : "") + (c.weight ? " weight" : "") +
                 (c.in_place ? " in place" : "") + " offset " + std::to_string(c.offset));
    const NormForward expected = norm_forward<HostBytes>(
        c, numbers, [](const ResidualNormForwardParams& p) { residual_norm_forward_cpu(p); });
    const NormForward actual = forward_on_device(c, numbers);
    const auto width = static_cast<size_t>(c.width);
    expect_close(actual.sum, doubles(expected.sum), c.type, [](size_t) { return 0.0; });
    expect_close(actual.rstd, doubles(expected.rstd), Real::kFloat32,
                 [&](size_t i) { return kSumError * expected.rstd[i]; });
    expect_close(actual.y, doubles(expected.y), c.type,
                 [&](size_t i) { return kSumError * std::abs(expected.y[i]); });
    const NormForward again = forward_on_device(c, numbers);
    expect_same_bits(again.y, actual.y);
    expect_same_bits(again.rstd, actual.rstd);

    const NormBackward gradient = norm_backward<HostBytes>(
        c, numbers, expected, [](const NormBackwardParams& p) { norm_backward_cpu(p); });
    const NormBackward computed = backward_on_device(c, numbers, expected);
    const std::vector<double> scales = gradient_scales(c, numbers, expected);
    expect_close(computed.dx, doubles(gradient.dx), c.type,
                 [&](size_t i) { return kSumError * scales[i / width]; });
    expect_close(computed.y, doubles(gradient.y), c.type, [](size_t) { return 0.0; });
    const std::vector<double> sums = weight_gradient_scales(c, numbers, expected);
    expect_close(computed.weight_gradient, doubles(gradient.weight_gradient), Real::kFloat32,
                 [&](size_t i) { return kSumError * sums[i]; });
    const NormBackward repeated = backward_on_device(c, numbers, expected);
    expect_same_bits(repeated.dx, computed.dx);
    expect_same_bits(repeated.weight_gradient, computed.weight_gradient);
  }
};

TEST_F(NormCuda, AgreesForEveryKindOfWidth) {
  for (const Real type : kReals) {
    for (const int64_t width :
         {1,    2,    7,    8,    9,    64,   255,  256,  257,  264,  511,  512,   768,   1000,
          1024, 1032, 1536, 2048, 2056, 2049, 4096, 5632, 6144, 8192, 8200, 12288, 16383, 16384}) {
      for (int variant = 0; variant < 8; ++variant) {
        const NormCase c = {type,
                            1 + width % 5 * 3,
                            width,
                            variant % 2 != 0,
                            variant / 2 % 2 != 0,
                            variant / 4 % 2 != 0,
                            variant % 3 != 0};
        expect_agreement(c, norm_numbers(c, static_cast<uint64_t>(width + variant)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// More rows than a round of the backward grid takes, and a last round that is not full.
TEST_F(NormCuda, AgreesForManyRows) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{9001, 64},
                                    {9001, 200},
                                    {5003, 512},
                                    {2801, 768},
                                    {2301, 2048},
                                    {1201, 4096},
                                    {801, 8192}}) {
    const NormCase c = {Real::kBfloat16, rows, width, true, true, rows % 3 == 0, true};
    expect_agreement(c, norm_numbers(c, static_cast<uint64_t>(rows)));
    if (HasFatalFailure()) return;
  }
}

TEST_F(NormCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    for (const int64_t width : {8, 1024, 2048}) {
      for (const size_t offset : {1, 2, 4, 7}) {
        const NormCase c = {type, 5, width, true, true, false, true, offset};
        expect_agreement(c, norm_numbers(c, offset));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(NormCuda, AgreesForExtremeNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> specials = {0.0f, 1e-40f, 1e-38f, 1e-30f, 1e18f, 1e30f, kInfinity, kNan};
  for (const Real type : kReals) {
    for (const int64_t width : {3, 40, 1024, 2056}) {
      for (const bool everywhere : {false, true}) {
        NormCase c = {.type = type,
                      .rows = 2 * static_cast<int64_t>(specials.size()),
                      .width = width,
                      .delta = false};
        NormNumbers numbers = norm_numbers(c, static_cast<uint64_t>(width));
        for (int64_t i = 0; i < c.rows * width; ++i) {
          const int64_t row = i / width;
          if (row % 2 == 0 || (!everywhere && i % 5 != 1)) continue;
          numbers.x[i] = i % 2 == 0 ? specials[row / 2] : -specials[row / 2];
        }
        numbers.x = rounded(type, numbers.x);
        expect_agreement(c, numbers);
        // A gradient of zeros, and one that is not finite in one row.
        std::fill(numbers.dy.begin(), numbers.dy.begin() + width, 0.0f);
        numbers.dy.back() = kNan;
        expect_agreement(c, numbers);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(NormCuda, NoRowsLeaveOrClearTheWeightGradient) {
  NormCase c = {.rows = 0, .width = 300};
  const NormNumbers numbers = norm_numbers(c, 1);
  forward_on_device(c, numbers);
  EXPECT_EQ(backward_on_device(c, numbers, {}).weight_gradient, std::vector<float>(300));
  c.accumulate = true;
  EXPECT_EQ(backward_on_device(c, numbers, {}).weight_gradient, numbers.before);
}

TEST_F(NormCuda, RefusesWhatTheCpuAbortsOn) {
  EXPECT_EQ(residual_norm_forward_cuda({.rows = 1, .width = 0}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(residual_norm_forward_cuda({.rows = 1, .width = 4}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(norm_backward_cuda({.rows = 1, .width = kMaximumRowWidth + 1}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(norm_backward_cuda({.rows = 1, .width = 4}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
