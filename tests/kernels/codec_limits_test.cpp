// The codecs where numbers or sizes are extreme: zeros, subnormals, huge and tiny rows, NaN,
// infinity, hostile payloads.
#include <gtest/gtest.h>

#include <limits>

#include "kernels/codec_fixture.h"

namespace tessera::kernels {
namespace {

constexpr Codec kCodecs[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4};
constexpr Codec kIntegerCodecs[] = {Codec::kInt8, Codec::kInt4};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double levels_of(Codec codec) { return codec == Codec::kInt8 ? 127.0 : 7.0; }

TEST(CodecLimits, NoRowsWriteOnlyTheExponent) {
  for (const Codec codec : kCodecs) {
    Guarded<int32_t> exponent(1);
    EncodeParams params = params_of(nullptr, 0, 20, codec, {});
    params.exponent = exponent.data();
    encode_cpu(params);
    EXPECT_EQ(exponent.copy()[0], has_scales(codec) ? -126 : 0) << name_of(codec);
    decode_cpu({.rows = 0, .width = 20, .codec = codec});
  }
}

TEST(CodecLimits, ZerosStayZeros) {
  for (const Codec codec : kCodecs) {
    for (const bool normalise : {false, true}) {
      const std::vector<float> input(3 * 7, 0.0f);
      const Encoded encoded =
          encode(input, 3, 7, codec, {.normalise = normalise, .stochastic = true, .seed = 1});
      EXPECT_EQ(encoded.payload, std::vector<uint8_t>(payload_bytes(codec, 3, 7), 0));
      EXPECT_EQ(encoded.exponent, has_scales(codec) ? -126 : 0);
      EXPECT_EQ(decode(encoded, 3, 7, codec), input) << name_of(codec);
    }
  }
}

TEST(CodecLimits, AZeroRowBesideOthersHasScaleZero) {
  for (const Codec codec : kIntegerCodecs) {
    const Encoded encoded = encode({1.0f, -2.0f, 0.0f, -0.0f}, 2, 2, codec);
    EXPECT_GT(scale_of(encoded, 0), 0.0);
    EXPECT_EQ(scale_of(encoded, 1), 0.0);
    const std::vector<float> decoded = decode(encoded, 2, 2, codec);
    EXPECT_EQ(decoded[2], 0.0f);
    EXPECT_EQ(decoded[3], 0.0f);
  }
}

TEST(CodecLimits, EveryMagnitudeKeepsItsRelativePrecision) {
  for (const Codec codec : kIntegerCodecs) {
    for (int power = -120; power <= 126; ++power) {
      const float unit = std::ldexp(1.0f, power);
      const std::vector<float> input = {1.75f * unit, -0.5f * unit, 0.3f * unit};
      const std::vector<float> decoded = decode(encode(input, 1, 3, codec), 1, 3, codec);
      const double bound = 1.75 / levels_of(codec) * (0.5 + 0x1p-10);
      for (int i = 0; i < 3; ++i) {
        ASSERT_NEAR(std::ldexp(decoded[i], -power), std::ldexp(input[i], -power), bound)
            << name_of(codec) << " 2^" << power;
      }
    }
  }
}

TEST(CodecLimits, SubnormalFramesLoseNoMoreThanHalfTheSmallestStep) {
  const float smallest = std::numeric_limits<float>::denorm_min();
  const std::vector<float> input = {smallest, -1000 * smallest, 0x1p-130f, -0x1p-127f, 0.0f};
  for (const Codec codec : kIntegerCodecs) {
    for (const int64_t width : {5, 1}) {  // one row of five, five rows of one
      const int64_t rows = 5 / width;
      const Encoded encoded = encode(input, rows, width, codec);
      EXPECT_EQ(encoded.exponent, -126);
      const std::vector<float> decoded = decode(encoded, rows, width, codec);
      for (int64_t i = 0; i < 5; ++i) {
        const double step = std::ldexp(scale_of(encoded, i / width), -126);
        EXPECT_LE(step, 0x1p-129);
        EXPECT_LE(std::abs(static_cast<double>(decoded[i]) - input[i]), 0.5 * step + 0x1p-149)
            << name_of(codec) << " " << i;
      }
    }
  }
  for (const Codec codec : {Codec::kFp32, Codec::kBf16}) {
    const std::vector<float> decoded = decode(encode(input, 1, 5, codec), 1, 5, codec);
    for (int i = 0; i < 5; ++i) {
      const double expected = codec == Codec::kFp32 ? input[i] : nearest_bfloat16(input[i]);
      EXPECT_EQ(static_cast<double>(decoded[i]), expected);
    }
  }
}

TEST(CodecLimits, LargestNumbersSurvive) {
  const float largest = std::numeric_limits<float>::max();
  const float safe = largest * (1.0f - 0x1p-10f);
  for (const Codec codec : kIntegerCodecs) {
    const std::vector<float> decoded =
        decode(encode({safe, -safe, safe / 3}, 1, 3, codec), 1, 3, codec);
    const double step = safe / levels_of(codec);
    EXPECT_LE(std::abs(static_cast<double>(decoded[0]) - safe), 0.51 * step);
    EXPECT_LE(std::abs(static_cast<double>(decoded[1]) + safe), 0.51 * step);
    EXPECT_LE(std::abs(static_cast<double>(decoded[2]) - safe / 3), 0.51 * step);
    const Encoded encoded = encode({largest}, 1, 1, codec);
    EXPECT_EQ(encoded.exponent, 112);
    EXPECT_GE(decode(encoded, 1, 1, codec)[0], safe);  // or infinity, as the header says
  }
  EXPECT_EQ(decode(encode({largest}, 1, 1, Codec::kFp32), 1, 1, Codec::kFp32)[0], largest);
  EXPECT_EQ(decode(encode({largest}, 1, 1, Codec::kBf16), 1, 1, Codec::kBf16)[0], kInfinity);
}

TEST(CodecLimits, SmallRowsBesideLargeOnesKeepTheirOwnScale) {
  for (const Codec codec : kIntegerCodecs) {
    const int reach = codec == Codec::kInt8 ? 22 : 26;
    const float small = std::ldexp(1.0f, -reach);
    const std::vector<float> input = {1.0f, 0.5f, small, 0.3f * small};
    const Encoded encoded = encode(input, 2, 2, codec);
    EXPECT_GE(scale_of(encoded, 1), 0x1p-14);
    const std::vector<float> decoded = decode(encoded, 2, 2, codec);
    EXPECT_NEAR(decoded[2] / small, 1.0, 0x1p-10);
    EXPECT_NEAR(decoded[3] / small, 0.3, 0.51 / levels_of(codec));
  }
}

TEST(CodecLimits, RowsFarBelowShareTheSmallestScale) {
  for (const Codec codec : kIntegerCodecs) {
    const Encoded encoded = encode({1.0f, 0.5f, 0x1p-60f, -0x1p-31f}, 2, 2, codec);
    EXPECT_EQ(encoded.exponent, -15);
    EXPECT_EQ(scale_of(encoded, 1), 0x1p-14);
    const std::vector<float> decoded = decode(encoded, 2, 2, codec);
    EXPECT_LE(std::abs(decoded[2] - 0x1p-60f), 0x1p-30);
    EXPECT_LE(std::abs(decoded[3] + 0x1p-31f), 0x1p-30);
  }
}

// ---- numbers that are not finite

TEST(CodecNotFinite, IntegersPoisonTheirRowAndNoOther) {
  for (const Codec codec : kIntegerCodecs) {
    for (const bool normalise : {false, true}) {
      const EncodeOptions options = {.normalise = normalise, .stochastic = true, .seed = 3};
      const std::vector<float> good = random_rows(3, 9, 5);
      const Encoded expected = encode(good, 3, 9, codec, options);
      for (const float bad : {kNan, -kNan, kInfinity, -kInfinity}) {
        std::vector<float> input = good;
        // Row 1 becomes the bad one; its place in the clean frame is taken by a row too small to
        // set the exponent.
        std::vector<float> clean = good;
        for (int i = 0; i < 9; ++i) clean[9 + i] = 0.0f;
        input[9 + 4] = bad;
        const Encoded encoded = encode(input, 3, 9, codec, options);
        const Encoded without = encode(clean, 3, 9, codec, options);
        EXPECT_EQ(encoded.exponent, without.exponent);
        Encoded patched = without;  // the same bytes but for the scale of row 1
        patched.payload[2] = 0x00;
        patched.payload[3] = 0x7e;
        EXPECT_EQ(encoded.payload, patched.payload) << name_of(codec) << " " << bad;
        const std::vector<float> decoded = decode(encoded, 3, 9, codec);
        for (int i = 0; i < 27; ++i) {
          EXPECT_EQ(std::isnan(decoded[i]), i / 9 == 1) << name_of(codec) << " " << bad << " " << i;
        }
      }
      EXPECT_EQ(encode(good, 3, 9, codec, options).payload, expected.payload);
    }
  }
}

TEST(CodecNotFinite, AFrameOfBadRowsOnlyHasTheSmallestExponent) {
  for (const Codec codec : kIntegerCodecs) {
    EXPECT_EQ(encode({kNan, 1e30f, kInfinity, 1.0f}, 2, 2, codec).exponent, -126);
  }
}

TEST(CodecNotFinite, FloatsKeepInfinitiesAndMakeNanCanonical) {
  float odd_nan;
  const uint32_t odd_bits = 0xff812345u;
  std::memcpy(&odd_nan, &odd_bits, 4);
  const std::vector<float> input = {kInfinity, -kInfinity, odd_nan, 1.0f};
  EXPECT_EQ(encode(input, 1, 4, Codec::kFp32).payload,
            (std::vector<uint8_t>{0, 0, 0x80, 0x7f, 0, 0, 0x80, 0xff, 0, 0, 0xc0, 0x7f, 0, 0, 0x80,
                                  0x3f}));
  EXPECT_EQ(encode(input, 1, 4, Codec::kBf16).payload,
            (std::vector<uint8_t>{0x80, 0x7f, 0x80, 0xff, 0xc0, 0x7f, 0x80, 0x3f}));
}

TEST(CodecNotFinite, NormalisingPoisonsTheWholeRowEvenWhenOnlyTheSumOverflows) {
  for (const Codec codec : kCodecs) {
    for (const float bad : {kNan, kInfinity, -kInfinity, 1e30f}) {
      const std::vector<float> input = {1.0f, bad, -2.0f, 3.0f, 4.0f, 5.0f};
      const Encoded encoded = encode(input, 2, 3, codec, {.normalise = true});
      const std::vector<float> decoded = decode(encoded, 2, 3, codec);
      for (int i = 0; i < 6; ++i) {
        EXPECT_EQ(std::isnan(decoded[i]), i < 3) << name_of(codec) << " " << bad << " " << i;
      }
      if (codec == Codec::kFp32) {
        EXPECT_EQ(encoded.payload[2], 0xc0);
        EXPECT_EQ(encoded.payload[3], 0x7f);
      }
    }
  }
}

// ---- untrusted payloads

TEST(CodecHostile, AnyBytesAndExponentDecodeInBounds) {
  Prng prng(99);
  for (const Codec codec : kCodecs) {
    for (const int64_t width : {1, 3, 8, 21}) {
      for (const int32_t exponent : {std::numeric_limits<int32_t>::min(), -127, -126, 0, 127, 128,
                                     std::numeric_limits<int32_t>::max()}) {
        Encoded encoded;
        encoded.payload.resize(payload_bytes(codec, 4, width));
        for (uint8_t& byte : encoded.payload) byte = static_cast<uint8_t>(prng.next());
        encoded.exponent = exponent;
        const std::vector<float> decoded = decode(encoded, 4, width, codec);  // guards checked
        encoded.exponent = std::clamp(exponent, -126, 127);
        const std::vector<float> nearest = decode(encoded, 4, width, codec);
        EXPECT_EQ(std::memcmp(decoded.data(), nearest.data(), decoded.size() * 4), 0);
      }
    }
  }
}

TEST(CodecHostile, ScalesThatAreNotFiniteShow) {
  // int8, scales +inf and NaN, codes 1 and 0: infinity, and NaN as the one pattern.
  const Encoded encoded = {{0x00, 0x7c, 0x01, 0xff, 1, 0, 1, 0}, 0};
  const std::vector<float> decoded = decode(encoded, 2, 2, Codec::kInt8);
  EXPECT_EQ(decoded[0], kInfinity);
  for (int i = 1; i < 4; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &decoded[i], 4);
    EXPECT_EQ(bits, 0x7fc00000u) << i;
  }
}

TEST(CodecHostile, TheCodesNoEncoderWritesDecodeAsNumbers) {
  const Encoded bytes = {{0x00, 0x3c, 0x80}, 1};  // int8 -128, scale 1, exponent 1
  EXPECT_EQ(decode(bytes, 1, 1, Codec::kInt8)[0], -256.0f);
  const Encoded nibbles = {{0x00, 0x3c, 0xf8}, 1};  // int4 -8, and padding that is not zero
  EXPECT_EQ(decode(nibbles, 1, 1, Codec::kInt4)[0], -16.0f);
}

using CodecDeathTest = ::testing::Test;

TEST(CodecDeathTest, SizesThatAreBugsAbort) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  int32_t exponent = 0;
  EncodeParams params = params_of(nullptr, 1, 4, Codec::kInt8, {});
  params.exponent = &exponent;
  EXPECT_DEATH(encode_cpu(params), "params.input != nullptr");
  params.rows = -1;
  EXPECT_DEATH(encode_cpu(params), "rows >= 0");
  params.rows = 0;
  params.width = 0;
  EXPECT_DEATH(encode_cpu(params), "width >= 1");
}

}  // namespace
}  // namespace tessera::kernels
