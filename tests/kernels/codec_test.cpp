// The codecs on the CPU: the bytes of the format, error bounds, stochastic rounding.
#include <gtest/gtest.h>

#include "kernels/codec_fixture.h"

namespace tessera::kernels {
namespace {

constexpr Codec kCodecs[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4};
constexpr Codec kIntegerCodecs[] = {Codec::kInt8, Codec::kInt4};
constexpr int64_t kWidths[] = {1, 2, 3, 4, 5, 7, 8, 20, 31, 32, 33, 64, 129, 257, 1000, 8192};

double levels_of(Codec codec) { return codec == Codec::kInt8 ? 127.0 : 7.0; }

// The rows divided by their root mean square, in double precision.
std::vector<double> normalised_rows(const std::vector<float>& input, int64_t rows, int64_t width) {
  std::vector<double> result(input.begin(), input.end());
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < width; ++i) sum += result[row * width + i] * result[row * width + i];
    const double divisor = std::sqrt(sum / width + static_cast<double>(1e-5f));
    for (int64_t i = 0; i < width; ++i) result[row * width + i] /= divisor;
  }
  return result;
}

double peak_of_row(const std::vector<double>& values, int64_t row, int64_t width) {
  double peak = 0.0;
  for (int64_t i = 0; i < width; ++i) peak = std::max(peak, std::abs(values[row * width + i]));
  return peak;
}

// ---- bytes

TEST(CodecBytes, Fp32AndBf16) {
  const std::vector<float> input = {1.0f, -0.0f, 3.1415927f};
  EXPECT_EQ(encode(input, 1, 3, Codec::kFp32).payload,
            (std::vector<uint8_t>{0, 0, 0x80, 0x3f, 0, 0, 0, 0x80, 0xdb, 0x0f, 0x49, 0x40}));
  EXPECT_EQ(encode(input, 1, 3, Codec::kBf16).payload,
            (std::vector<uint8_t>{0x80, 0x3f, 0, 0x80, 0x49, 0x40}));
  EXPECT_EQ(encode(input, 1, 3, Codec::kFp32).exponent, 0);
  EXPECT_EQ(encode(input, 1, 3, Codec::kBf16).exponent, 0);
}

TEST(CodecBytes, Int8) {
  // Peak 127 = 2^6.99: e = 6 - 15 = -9. Row 0 has the scale 1 * 2^9 = 512 (6000), row 1 half of it.
  const std::vector<float> input = {127.0f, -2.5f, 1.5f, -63.5f, 0.25f, 0.0f};
  const Encoded encoded = encode(input, 2, 3, Codec::kInt8);
  EXPECT_EQ(encoded.exponent, -9);
  EXPECT_EQ(encoded.payload, (std::vector<uint8_t>{0x00, 0x60, 0x00, 0x5c,  // scales
                                                   127, 0xfe, 2,            // 127, -2, 2
                                                   0x81, 0, 0}));           // -127, 0, 0
  EXPECT_EQ(decode(encoded, 2, 3, Codec::kInt8),
            (std::vector<float>{127.0f, -2.0f, 2.0f, -63.5f, 0.0f, 0.0f}));
}

TEST(CodecBytes, Int4PadsEachRow) {
  // Peak 7: e = 2 - 15 = -13, scale 1 * 2^13 = 8192 (7000).
  const std::vector<float> input = {7.0f, -7.0f, 1.0f, -1.0f, 6.5f, 7.0f};
  const Encoded encoded = encode(input, 2, 3, Codec::kInt4);
  EXPECT_EQ(encoded.exponent, -13);
  EXPECT_EQ(encoded.payload, (std::vector<uint8_t>{0x00, 0x70, 0x00, 0x70,  // scales
                                                   0x97, 0x01,              // 7 -7 | 1
                                                   0x6f, 0x07}));           // -1 6 | 7
  EXPECT_EQ(decode(encoded, 2, 3, Codec::kInt4),
            (std::vector<float>{7.0f, -7.0f, 1.0f, -1.0f, 6.0f, 7.0f}));
}

TEST(CodecBytes, NormaliseSumsInTheDocumentedOrder) {
  for (const int64_t width : kWidths) {
    const std::vector<float> input = random_rows(1, width, 100 + width);
    float lanes[32] = {};
    for (int64_t i = 0; i < width; ++i) {
      const float square = input[i] * input[i];
      lanes[i % 32] = lanes[i % 32] + square;
    }
    for (int half : {16, 8, 4, 2, 1}) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] = lanes[lane] + lanes[lane + half];
    }
    const float divisor = std::sqrt(lanes[0] / static_cast<float>(width) + 1e-5f);
    std::vector<float> expected(width);
    for (int64_t i = 0; i < width; ++i) expected[i] = input[i] / divisor;
    const Encoded encoded = encode(input, 1, width, Codec::kFp32, {.normalise = true});
    EXPECT_EQ(decode(encoded, 1, width, Codec::kFp32), expected) << width;
  }
}

// ---- against double precision

TEST(CodecReference, FloatsRoundTrip) {
  for (const int64_t width : kWidths) {
    const std::vector<float> input = random_rows(5, width, width);
    EXPECT_EQ(decode(encode(input, 5, width, Codec::kFp32), 5, width, Codec::kFp32), input);
    const auto decoded = decode(encode(input, 5, width, Codec::kBf16), 5, width, Codec::kBf16);
    for (size_t i = 0; i < input.size(); ++i) {
      ASSERT_EQ(static_cast<double>(decoded[i]), nearest_bfloat16(input[i])) << width << " " << i;
    }
  }
}

TEST(CodecReference, FloatsNormalise) {
  for (const int64_t width : kWidths) {
    const std::vector<float> input = random_rows(5, width, width);
    const std::vector<double> expected = normalised_rows(input, 5, width);
    for (const Codec codec : {Codec::kFp32, Codec::kBf16}) {
      const double bound = codec == Codec::kFp32 ? 0x1p-19 : 0x1.01p-8;
      const auto decoded =
          decode(encode(input, 5, width, codec, {.normalise = true}), 5, width, codec);
      for (size_t i = 0; i < input.size(); ++i) {
        ASSERT_LE(std::abs(decoded[i] - expected[i]), bound * std::abs(expected[i]))
            << name_of(codec) << " " << width << " " << i;
      }
    }
  }
}

// Exponent, scales and codes as the header says, computed in double precision.
void check_integers(Codec codec, int64_t rows, int64_t width, bool normalise) {
  const double levels = levels_of(codec);
  const std::vector<float> input = random_rows(rows, width, 7 * width + rows);
  const Encoded encoded = encode(input, rows, width, codec, {.normalise = normalise});
  const auto values = normalise ? normalised_rows(input, rows, width)
                                : std::vector<double>(input.begin(), input.end());
  double largest = 0.0;
  for (int64_t row = 0; row < rows; ++row) {
    largest = std::max(largest, peak_of_row(values, row, width));
  }
  // Normalised numbers are close to, not equal to, those in float: a peak next to a power of two
  // may go either way.
  ASSERT_NEAR(encoded.exponent, std::floor(std::log2(largest)) - 15, normalise ? 1 : 0);
  for (int64_t row = 0; row < rows; ++row) {
    const double scaled_peak = std::ldexp(peak_of_row(values, row, width), -encoded.exponent);
    const double scale = scale_of(encoded, row);
    ASSERT_LE(std::abs(scale - scaled_peak / levels), scaled_peak / levels * 0x1.01p-11);
    if (!normalise) {
      ASSERT_EQ(scale, nearest_half(static_cast<float>(scaled_peak) / static_cast<float>(levels)));
    }
    for (int64_t column = 0; column < width; ++column) {
      const double exact = std::ldexp(values[row * width + column], -encoded.exponent) / scale;
      const int code = code_of(encoded, rows, width, codec, row, column);
      ASSERT_LE(std::abs(code), levels);
      // Half a step, and the float rounding of a number up to 127 (or of its normalisation).
      ASSERT_LE(std::abs(code - exact), 0.5 + (normalise ? 1e-3 : 0x1p-17))
          << name_of(codec) << " " << rows << "x" << width << " row " << row << " column "
          << column;
    }
  }
}

TEST(CodecReference, IntegersCodeAsDescribed) {
  for (const Codec codec : kIntegerCodecs) {
    for (const int64_t width : kWidths) {
      for (const bool normalise : {false, true}) {
        for (const int64_t rows : {1, 2, 9}) check_integers(codec, rows, width, normalise);
      }
    }
  }
}

TEST(CodecReference, IntegersDecodeAsDescribed) {
  for (const Codec codec : kIntegerCodecs) {
    for (const int64_t width : kWidths) {
      const int64_t rows = 9;
      const Encoded encoded = encode(random_rows(rows, width, width), rows, width, codec);
      const std::vector<float> decoded = decode(encoded, rows, width, codec);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < width; ++column) {
          const int code = code_of(encoded, rows, width, codec, row, column);
          ASSERT_EQ(static_cast<double>(decoded[row * width + column]),
                    std::ldexp(code * scale_of(encoded, row), encoded.exponent));
        }
        if (codec == Codec::kInt4 && width % 2 == 1) {
          const size_t last = rows * 2 + (row + 1) * row_code_bytes(codec, width) - 1;
          ASSERT_EQ(encoded.payload[last] >> 4, 0) << "the padding must be zero";
        }
      }
    }
  }
}

TEST(CodecReference, AnyAlignmentGivesTheSameBytes) {
  const std::vector<float> input = random_rows(3, 21, 4);
  for (const Codec codec : kCodecs) {
    const Encoded expected = encode(input, 3, 21, codec);
    for (const size_t misalignment : {1, 2, 3, 5}) {
      Guarded<uint8_t> payload(expected.payload.size(), misalignment);
      int32_t exponent = 0;
      EncodeParams params = params_of(input.data(), 3, 21, codec, {});
      params.payload = payload.data();
      params.exponent = &exponent;
      encode_cpu(params);
      EXPECT_EQ(payload.copy(), expected.payload) << name_of(codec) << " " << misalignment;
    }
  }
}

// ---- stochastic rounding

TEST(CodecStochastic, IsAFunctionOfSeedAndStream) {
  const std::vector<float> input = random_rows(16, 33, 1);
  for (const Codec codec : kIntegerCodecs) {
    const auto bytes = [&](uint64_t seed, uint64_t stream) {
      return encode(input, 16, 33, codec, {.stochastic = true, .seed = seed, .stream = stream})
          .payload;
    };
    EXPECT_EQ(bytes(1, 2), bytes(1, 2));
    EXPECT_NE(bytes(1, 2), bytes(2, 2));
    EXPECT_NE(bytes(1, 2), bytes(1, 3));
    EXPECT_NE(bytes(1, 2), bytes(uint64_t{1} << 32 | 1, 2));
    EXPECT_NE(bytes(1, 2), bytes(1, uint64_t{1} << 32 | 2));
    EXPECT_NE(bytes(1, 2), encode(input, 16, 33, codec).payload);
  }
}

TEST(CodecStochastic, FloatsIgnoreIt) {
  const std::vector<float> input = random_rows(4, 9, 1);
  for (const Codec codec : {Codec::kFp32, Codec::kBf16}) {
    EXPECT_EQ(encode(input, 4, 9, codec, {.stochastic = true, .seed = 5}).payload,
              encode(input, 4, 9, codec).payload);
  }
}

TEST(CodecStochastic, StaysWithinAStep) {
  for (const Codec codec : kIntegerCodecs) {
    const std::vector<float> input = random_rows(8, 50, 3);
    const Encoded encoded = encode(input, 8, 50, codec, {.stochastic = true, .seed = 9});
    const std::vector<float> decoded = decode(encoded, 8, 50, codec);
    for (int64_t i = 0; i < 400; ++i) {
      const double step = std::ldexp(scale_of(encoded, i / 50), encoded.exponent);
      ASSERT_LT(std::abs(decoded[i] - input[i]), step * (1 + 0x1p-16))
          << name_of(codec) << " " << i;
    }
  }
}

TEST(CodecStochastic, IsUnbiased) {
  constexpr int kSeeds = 4000;
  constexpr int64_t kWidth = 21;
  for (const Codec codec : kIntegerCodecs) {
    const std::vector<float> input = random_rows(2, kWidth, 8);
    std::vector<double> sums(input.size());
    Encoded encoded;
    for (int seed = 0; seed < kSeeds; ++seed) {
      encoded = encode(input, 2, kWidth, codec,
                       {.stochastic = true, .seed = static_cast<uint64_t>(seed), .stream = 77});
      const std::vector<float> decoded = decode(encoded, 2, kWidth, codec);
      for (size_t i = 0; i < input.size(); ++i) sums[i] += decoded[i];
    }
    for (size_t i = 0; i < input.size(); ++i) {
      const double step =
          std::ldexp(scale_of(encoded, static_cast<int64_t>(i) / kWidth), encoded.exponent);
      // The mean of n draws deviates by step / (2 sqrt(n)) at most; five of those, and the clamp of
      // the largest number.
      const double bound = step * 2.5 / std::sqrt(kSeeds) + std::abs(input[i]) * 0x1p-11;
      EXPECT_NEAR(sums[i] / kSeeds, input[i], bound) << name_of(codec) << " " << i;
    }
  }
}

}  // namespace
}  // namespace tessera::kernels
