// The 8-bit floats on the GPU: the bytes of the reference, at every size and for every number.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/fp8_fixture.h"

namespace tessera::kernels {
namespace {

class Fp8Cuda : public CudaTest {
 protected:
  void expect_same_bytes(Real type, Fp8Format format, int64_t rows, int64_t width,
                         const std::vector<float>& x) {
    SCOPED_TRACE(kernels::name_of(type) + " " + name_of(format) + " " + std::to_string(rows) + "x" +
                 std::to_string(width));
    const Fp8Result expected = fp8_on_host(type, format, rows, width, x);
    const Fp8Result measured = fp8_of<DeviceBytes>(
        type, format, rows, width, x,
        [&](const Fp8MagnitudeParams& params) {
          EXPECT_EQ(fp8_magnitude_cuda(params, stream_), cudaSuccess);
        },
        [&](const Fp8QuantiseParams& params) {
          EXPECT_EQ(fp8_quantise_cuda(params, stream_), cudaSuccess);
          EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        });
    EXPECT_EQ(measured.magnitude, expected.magnitude);
    EXPECT_EQ(measured.inverse_scale, expected.inverse_scale);
    EXPECT_EQ(measured.codes, expected.codes);
    EXPECT_EQ(measured.transposed, expected.transposed);
  }
};

TEST_F(Fp8Cuda, BytesAreTheReferencesAtEverySize) {
  for (const Real type : kReals) {
    for (const Fp8Format format : kFp8Formats) {
      for (const int64_t rows : {16, 112, 128, 144, 1040}) {
        for (const int64_t width : {16, 48, 64, 80, 2048}) {
          expect_same_bytes(type, format, rows, width,
                            random_reals(type, rows, width, static_cast<uint64_t>(rows + width)));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(Fp8Cuda, BytesAreTheReferencesForExtremeNumbers) {
  for (const Real type : kReals) {
    for (const Fp8Format format : kFp8Formats) {
      std::vector<float> x = extreme_reals(type, 64, 96, 3);
      expect_same_bytes(type, format, 64, 96, x);
      x[1000] = std::numeric_limits<float>::infinity();
      expect_same_bytes(type, format, 64, 96, x);
      x[2000] = -std::numeric_limits<float>::quiet_NaN();
      expect_same_bytes(type, format, 64, 96, x);
      expect_same_bytes(type, format, 16, 32, std::vector<float>(512, 0.0f));
      expect_same_bytes(type, format, 16, 32, rounded(type, std::vector<float>(512, 1e-39f)));
    }
  }
}

TEST_F(Fp8Cuda, EveryBfloat16HasTheReferencesCode) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(Bfloat16{static_cast<uint16_t>(bits)});
    x.push_back(std::abs(value) <= 1000.0f ? value : 0.0f);
  }
  for (const Fp8Format format : kFp8Formats) {
    expect_same_bytes(Real::kBfloat16, format, 256, 256, x);
  }
}

TEST_F(Fp8Cuda, BrokenSizesAreRefused) {
  EXPECT_EQ(fp8_magnitude_cuda({.count = 3}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_quantise_cuda({.rows = 8, .width = 16}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(fp8_quantise_cuda({.rows = 16, .width = 24}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
