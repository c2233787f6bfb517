// The SwiGLU kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/swiglu_fixture.h"

namespace tessera::kernels {
namespace {

double finite_or_zero(double value) { return std::isfinite(value) ? value : 0.0; }

class SwigluCuda : public CudaTest {
 protected:
  std::vector<float> forward_on_device(const SwigluCase& c, const SwigluNumbers& numbers) {
    return swiglu_forward<DeviceBytes>(c, numbers, [&](const SwigluForwardParams& params) {
      EXPECT_EQ(swiglu_forward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }
  SwigluGradient backward_on_device(const SwigluCase& c, const SwigluNumbers& numbers) {
    return swiglu_backward<DeviceBytes>(c, numbers, [&](const SwigluBackwardParams& params) {
      EXPECT_EQ(swiglu_backward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }

  void expect_agreement(const SwigluCase& c, const SwigluNumbers& numbers) {
    SCOPED_TRACE(name_of(c.type) + " " + std::to_string(c.rows) + "x" + std::to_string(c.width) +
                 (c.in_place ? " in place" : "") + " offset " + std::to_string(c.offset));
    const std::vector<float> h = swiglu_forward<HostBytes>(
        c, numbers, [](const SwigluForwardParams& p) { swiglu_forward_cpu(p); });
    const SwigluGradient gradient = swiglu_backward<HostBytes>(
        c, numbers, [](const SwigluBackwardParams& p) { swiglu_backward_cpu(p); });
    const SwigluScales scales = swiglu_scales(c, numbers);
    const auto h_slack = [&](size_t i) { return finite_or_zero(0x1p-15 * scales.h[i]); };
    const auto gradient_slack = [&](size_t i) {
      return finite_or_zero(0x1p-15 * scales.gate_up[i]);
    };
    const std::vector<float> actual = forward_on_device(c, numbers);
    expect_close(actual, doubles(h), c.type, h_slack);
    expect_same_bits(forward_on_device(c, numbers), actual);
    const SwigluGradient computed = backward_on_device(c, numbers);
    expect_close(computed.h, doubles(h), c.type, h_slack);
    expect_close(computed.gate_up, doubles(gradient.gate_up), c.type, gradient_slack);
    const SwigluGradient repeated = backward_on_device(c, numbers);
    expect_same_bits(repeated.gate_up, computed.gate_up);
    expect_same_bits(repeated.h, computed.h);
  }
};

TEST_F(SwigluCuda, AgreesForEveryKindOfWidth) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 5, 8, 9, 64, 255, 256, 1000, 2048, 5632, 14336}) {
      for (const int64_t rows : {1, 2, 7, 33}) {
        const SwigluCase c = {type, rows, width, rows % 2 == 0};
        expect_agreement(c, swiglu_numbers(c, static_cast<uint64_t>(width + rows)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(SwigluCuda, AgreesForManyRows) {
  for (const Real type : kReals) {
    const SwigluCase c = {type, 20'011, 24, true};
    expect_agreement(c, swiglu_numbers(c, 4));
  }
}

TEST_F(SwigluCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    for (const size_t offset : {1, 2, 4, 7}) {
      const SwigluCase c = {type, 9, 128, false, offset};
      expect_agreement(c, swiglu_numbers(c, offset));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SwigluCuda, AgreesForExtremeNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> specials = {0.0f,   -0.0f,  1e-40f,  -1e-40f,   1e-30f, 20.0f,
                                       -20.0f, 100.0f, -100.0f, 1e30f,     -1e30f, kInfinity,
                                       kNan,   -87.0f, -86.0f,  -kInfinity};
  for (const Real type : kReals) {
    const auto count = static_cast<int64_t>(specials.size());
    const SwigluCase c = {type, count, 3 * count};
    SwigluNumbers numbers = swiglu_numbers(c, 8);
    // Every special gate with every special `up`, and with usual numbers.
    for (int64_t row = 0; row < count; ++row) {
      float* gates = numbers.gate_up.data() + row * 6 * count;
      for (int64_t i = 0; i < count; ++i) {
        gates[i] = specials[i];
        gates[3 * count + i] = specials[row];
        gates[count + i] = specials[i];
        gates[3 * count + 2 * count + i] = specials[row];
      }
    }
    numbers.gate_up = rounded(type, numbers.gate_up);
    expect_agreement(c, numbers);
  }
}

TEST_F(SwigluCuda, NoRowsAndBrokenSizes) {
  EXPECT_EQ(swiglu_forward_cuda({.rows = 0, .width = 8}, stream_), cudaSuccess);
  EXPECT_EQ(swiglu_backward_cuda({.rows = 0, .width = 8}, stream_), cudaSuccess);
  EXPECT_EQ(swiglu_forward_cuda({.rows = 1, .width = 0}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(swiglu_forward_cuda({.rows = 1, .width = 8}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(swiglu_backward_cuda({.rows = 1, .width = 8}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
