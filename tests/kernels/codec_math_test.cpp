// The parts the codecs are made of: the generator against published vectors, the number formats
// against arithmetic in double precision.
#include "kernels/codec_math.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>

#include "kernels/codec_fixture.h"

namespace tessera::kernels {
namespace {

std::array<uint32_t, 4> words_of(const PhiloxBlock& block) {
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(words_of(philox4x32({{0, 0, 0, 0}}, 0, 0)),
            (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(words_of(philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u)),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(words_of(philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u,
                                0x299f31d0u)),
            (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Philox, RoundingWordsPlaceQuadStreamAndSeed) {
  const PhiloxBlock expected =
      philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u);
  EXPECT_EQ(words_of(rounding_words(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u)),
            words_of(expected));
}

TEST(Half, EveryPatternDecodesToItsValueAndBack) {
  for (uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    const uint16_t half = static_cast<uint16_t>(pattern);
    const double value = value_of_half(half);
    const float decoded = float_of_half(half);
    if (std::isnan(value)) {
      ASSERT_EQ(bits_of_float(decoded), kQuietNanBits) << std::hex << pattern;
      ASSERT_EQ(half_of_float(decoded), kHalfQuietNan) << std::hex << pattern;
    } else {
      ASSERT_EQ(static_cast<double>(decoded), value) << std::hex << pattern;
      ASSERT_EQ(half_of_float(decoded), half) << std::hex << pattern;
    }
  }
}

TEST(Half, RoundsTiesToEvenAndNeighboursOfTiesAway) {
  for (uint32_t pattern = 0; pattern < 0x7c00u; ++pattern) {
    const double low = value_of_half(static_cast<uint16_t>(pattern));
    const double high =
        pattern == 0x7bffu ? 65536.0 : value_of_half(static_cast<uint16_t>(pattern + 1));
    const float middle = static_cast<float>((low + high) / 2);  // exact: two more bits at most
    const uint32_t even = pattern % 2 == 0 ? pattern : pattern + 1;
    ASSERT_EQ(half_of_float(middle), even) << std::hex << pattern;
    ASSERT_EQ(half_of_float(std::nextafterf(middle, 0.0f)), pattern) << std::hex << pattern;
    ASSERT_EQ(half_of_float(std::nextafterf(middle, 1e9f)), pattern + 1) << std::hex << pattern;
    ASSERT_EQ(half_of_float(-middle), even | 0x8000u) << std::hex << pattern;
  }
}

// All exponents and signs, with random mantissas.
template <class Check>
void for_many_floats(Check check) {
  Prng prng(11);
  for (uint32_t head = 0; head < 512; ++head) {
    for (int i = 0; i < 400; ++i) {
      check(std::bit_cast<float>((head << 23) | static_cast<uint32_t>(prng.next() >> 41)));
    }
    check(std::bit_cast<float>(head << 23));
    check(std::bit_cast<float>((head << 23) | 0x7fffffu));
  }
}

TEST(Half, AgreesWithArithmetic) {
  for_many_floats([](float x) {
    const uint16_t half = half_of_float(x);
    if (std::isnan(x)) {
      ASSERT_EQ(half, kHalfQuietNan);
    } else if (std::isinf(x)) {
      ASSERT_EQ(value_of_half(half), static_cast<double>(x));
    } else {
      ASSERT_EQ(value_of_half(half), nearest_half(x)) << x;
      ASSERT_EQ(half >> 15, std::signbit(x) ? 1 : 0) << x;
    }
  });
}

TEST(Bfloat16, AgreesWithArithmetic) {
  for_many_floats([](float x) {
    const uint16_t stored = bfloat16_of_float(x);
    const double value = std::bit_cast<float>(static_cast<uint32_t>(stored) << 16);
    if (std::isnan(x)) {
      ASSERT_EQ(stored, kBfloat16QuietNan);
    } else if (std::isinf(x)) {
      ASSERT_EQ(value, static_cast<double>(x));
    } else {
      ASSERT_EQ(value, nearest_bfloat16(x)) << x;
      ASSERT_EQ(stored >> 15, std::signbit(x) ? 1 : 0) << x;
    }
  });
}

TEST(Bfloat16, RoundsTiesToEven) {
  EXPECT_EQ(bfloat16_of_float(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(bfloat16_of_float(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(bfloat16_of_float(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(bfloat16_of_float(std::bit_cast<float>(0x7f7fffffu)), 0x7f80);
}

TEST(Rounding, ToNearestEvenOverTheWholeRangeOfCodes) {
  for (int i = -127 * 64; i <= 127 * 64; ++i) {
    const float v = static_cast<float>(i) / 64.0f;
    ASSERT_EQ(round_to_nearest(v), static_cast<int>(std::nearbyint(v))) << v;
    ASSERT_EQ(round_to_nearest(std::nextafterf(v, 1e9f)),
              static_cast<int>(std::nearbyint(std::nextafterf(v, 1e9f))))
        << v;
  }
}

TEST(Rounding, StochasticMovesUpExactlyBelowTheFraction) {
  for (const float v : {-126.75f, -3.5f, -0.25f, 0.25f, 2.5f, 3.75f, 126.5f}) {
    const double floor = std::floor(v);
    const uint32_t threshold = static_cast<uint32_t>((v - floor) * 0x1p24);
    EXPECT_EQ(round_stochastically(v, (threshold - 1) << 8), static_cast<int>(floor) + 1) << v;
    EXPECT_EQ(round_stochastically(v, threshold << 8), static_cast<int>(floor)) << v;
    EXPECT_EQ(round_stochastically(v, 0), static_cast<int>(floor) + 1) << v;
    EXPECT_EQ(round_stochastically(v, ~0u), static_cast<int>(floor)) << v;
  }
  EXPECT_EQ(round_stochastically(-1e-30f, ~0u), 0);
  EXPECT_EQ(round_stochastically(1e-30f, ~0u), 0);
}

TEST(Rounding, StochasticNeverMovesWholeNumbers) {
  for (int whole = -127; whole <= 127; ++whole) {
    EXPECT_EQ(round_stochastically(static_cast<float>(whole), 0), whole);
    EXPECT_EQ(round_stochastically(static_cast<float>(whole), ~0u), whole);
  }
}

TEST(Rounding, CountsQuadsThroughTheFrameAsDocumented) {
  constexpr uint64_t kSeed = 0x0123456789abcdefull;
  constexpr uint64_t kStream = 0xfedcba9876543210ull;
  for (const int64_t width : {3, 4, 10, 300}) {
    // A peak of 127 in every row makes the step exactly 1.
    const int64_t rows = 5;
    std::vector<float> input(rows * width);
    for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 97) - 48.375f;
    for (int64_t row = 0; row < rows; ++row) input[row * width] = 127.0f;
    const Encoded encoded = encode(input, rows, width, Codec::kInt8,
                                   {.stochastic = true, .seed = kSeed, .stream = kStream});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        const uint64_t quad = row * ((width + 3) / 4) + column / 4;
        const PhiloxBlock block = philox4x32(
            {{static_cast<uint32_t>(quad), 0, static_cast<uint32_t>(kStream), kStream >> 32}},
            static_cast<uint32_t>(kSeed), kSeed >> 32);
        const double uniform = (block.word[column % 4] >> 8) * 0x1p-24;
        const double v = input[row * width + column];
        const int expected =
            static_cast<int>(std::floor(v) + (uniform < v - std::floor(v) ? 1 : 0));
        ASSERT_EQ(code_of(encoded, rows, width, Codec::kInt8, row, column), expected)
            << width << " row " << row << " column " << column;
      }
    }
  }
}

TEST(Exponent, PutsThePeakUnderTheTopOfHalf) {
  for_many_floats([](float x) {
    const float peak = std::abs(x);
    if (!is_finite_peak(peak)) return;
    const int32_t exponent = exponent_of_peak(peak);
    const int32_t expected = peak == 0.0f ? -126 : std::max(-126, std::ilogb(peak) - 15);
    ASSERT_EQ(exponent, expected) << peak;
    ASSERT_LT(peak * power_of_two(-exponent), 65536.0f) << peak;
  });
}

}  // namespace
}  // namespace tessera::kernels
