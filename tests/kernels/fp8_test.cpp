// The reference of the 8-bit floats: every code, the rounding, the scale and the layouts.
#include "kernels/fp8_fixture.h"

#include "kernels/fp8_math.h"

namespace tessera::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Codes of the finite numbers that are not negative: in ascending order.
int finite_codes(Fp8Format format) { return format == Fp8Format::kE4m3 ? 0x7f : 0x7c; }

TEST(Fp8, CodesAreTheFormats) {
  EXPECT_EQ(float_of_fp8(0x08, Fp8Format::kE4m3), 0x1p-6f);
  EXPECT_EQ(float_of_fp8(0x01, Fp8Format::kE4m3), 0x1p-9f);
  EXPECT_EQ(float_of_fp8(0x38, Fp8Format::kE4m3), 1.0f);
  EXPECT_EQ(float_of_fp8(0xfe, Fp8Format::kE4m3), -448.0f);
  EXPECT_EQ(float_of_fp8(0x01, Fp8Format::kE5m2), 0x1p-16f);
  EXPECT_EQ(float_of_fp8(0x04, Fp8Format::kE5m2), 0x1p-14f);
  EXPECT_EQ(float_of_fp8(0x3c, Fp8Format::kE5m2), 1.0f);
  EXPECT_EQ(float_of_fp8(0x7b, Fp8Format::kE5m2), 57344.0f);
  for (const Fp8Format format : kFp8Formats) {
    EXPECT_TRUE(std::isnan(float_of_fp8(kFp8Nan, format)));
    EXPECT_EQ(float_of_fp8(static_cast<uint8_t>(finite_codes(format) - 1), format), largest_fp8(format));
    for (int code = 1; code < finite_codes(format); ++code) {
      EXPECT_GT(float_of_fp8(static_cast<uint8_t>(code), format),
                float_of_fp8(static_cast<uint8_t>(code - 1), format));
    }
  }
}

TEST(Fp8, RoundsToTheNearestAndOfTwoToTheEvenCode) {
  for (const Fp8Format format : kFp8Formats) {
    for (int code = 0; code < finite_codes(format); ++code) {
      const float value = float_of_fp8(static_cast<uint8_t>(code), format);
      ASSERT_EQ(fp8_of_float(value, format), code) << name_of(format);
      ASSERT_EQ(fp8_of_float(-value, format), code | 0x80) << name_of(format);
      if (code + 1 == finite_codes(format)) continue;
      const float next = float_of_fp8(static_cast<uint8_t>(code + 1), format);
      const float middle = value + (next - value) / 2;  // exact
      EXPECT_EQ(fp8_of_float(middle, format), code % 2 == 0 ? code : code + 1);
      EXPECT_EQ(fp8_of_float(std::nextafter(middle, 0.0f), format), code);
      EXPECT_EQ(fp8_of_float(std::nextafter(middle, kInfinity), format), code + 1);
    }
    EXPECT_EQ(fp8_of_float(2 * largest_fp8(format), format), finite_codes(format) - 1);
    EXPECT_EQ(fp8_of_float(kInfinity, format), kFp8Nan);
    EXPECT_EQ(fp8_of_float(-kNan, format), kFp8Nan);
  }
}

TEST(Fp8, TheScaleIsTheLargestPowerOfTwoThatFits) {
  for (const Fp8Format format : kFp8Formats) {
    for (const float magnitude : {1e-37f, 3e-9f, 0.7f, 1.0f, 1.75f, std::nextafter(1.75f, 2.0f), 2.0f, 448.0f, 449.0f, 57345.0f, 3e38f}) {
      const int exponent = fp8_scale_exponent(bits_of_float(magnitude), format);
      EXPECT_LE(std::ldexp(static_cast<double>(magnitude), exponent), largest_fp8(format)) << magnitude;
      EXPECT_TRUE(exponent == 126 ||
                  std::ldexp(static_cast<double>(magnitude), exponent + 1) > largest_fp8(format))
          << magnitude;
    }
    EXPECT_EQ(fp8_scale_exponent(bits_of_float(1e-42f), format), 126);
    EXPECT_EQ(fp8_scale_exponent(0, format), 0);
    EXPECT_EQ(fp8_scale_exponent(kInfinityBits, format), 0);
  }
}

TEST(Fp8, ATensorIsWithinHalfAStepAndItsTransposeHasTheSameCodes) {
  for (const Real type : kReals) {
    for (const Fp8Format format : kFp8Formats) {
      constexpr int64_t kRows = 48, kWidth = 80;
      const std::vector<float> x = random_reals(type, kRows, kWidth, 5);
      const Fp8Result result = fp8_on_host(type, format, kRows, kWidth, x);
      float largest = 0;
      for (const float value : x) largest = std::max(largest, std::abs(value));
      EXPECT_EQ(result.magnitude, bits_of_float(largest));
      const double relative = format == Fp8Format::kE4m3 ? 0x1p-4 : 0x1p-3;
      const double smallest = format == Fp8Format::kE4m3 ? 0x1p-10 : 0x1p-17;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t column = 0; column < kWidth; ++column) {
          const size_t at = static_cast<size_t>(row * kWidth + column);
          const double value = static_cast<double>(float_of_fp8(result.codes[at], format)) * result.inverse_scale;
          ASSERT_NEAR(value, x[at], std::max(relative * std::abs(x[at]), smallest * result.inverse_scale));
          ASSERT_EQ(result.transposed[static_cast<size_t>(column * kRows + row)], result.codes[at]);
        }
      }
    }
  }
}

TEST(Fp8, WhatIsNotFiniteStaysSo) {
  for (const float bad : {kInfinity, -kInfinity, kNan}) {
    std::vector<float> x(256, 0.5f);
    x[37] = bad;
    const Fp8Result result = fp8_on_host(Real::kFloat32, Fp8Format::kE5m2, 16, 16, x);
    EXPECT_EQ(result.magnitude, kInfinityBits);
    EXPECT_EQ(result.codes[37], kFp8Nan);
    EXPECT_EQ(float_of_fp8(result.codes[36], Fp8Format::kE5m2) * result.inverse_scale, 0.5f);
  }
}

}  // namespace
}  // namespace tessera::kernels
