// The merge's wire formats against their description in double precision.
#include "kernels/merge_wire_fixture.h"

#include <algorithm>
#include <cstring>

namespace tessera::kernels {
namespace {

double levels(Codec format) { return format == Codec::kInt8 ? 127 : 7; }

double peak_of_group(const std::vector<float>& values, uint64_t i, uint64_t block_values) {
  const uint64_t block_end = (i / block_values + 1) * block_values;
  const uint64_t begin = i / kMergeGroup * kMergeGroup;  // groups do not straddle blocks
  const uint64_t end =
      std::min<uint64_t>({begin + kMergeGroup, block_end, static_cast<uint64_t>(values.size())});
  double peak = 0;
  for (uint64_t j = begin; j < end; ++j) peak = std::max(peak, std::abs(double{values[j]}));
  return peak;
}

// The largest error of one value that the description allows.
double allowed(const MergeCase& c, const std::vector<float>& values, uint64_t i) {
  if (c.run.format == Codec::kFp32) return 0;
  const double x = std::abs(double{values[i]});
  if (c.run.format == Codec::kBf16) {
    return std::max(x * (c.stochastic ? 0x1p-7 : 0x1p-8), c.stochastic ? 0x1p-133 : 0x1p-134);
  }
  const double peak = peak_of_group(values, i, c.run.block_values);
  const double scale = std::max(peak / levels(c.run.format), 0x1p-126);
  return scale * (c.stochastic ? 1.0 : 0.5) * (1 + 0x1p-16) + x * 0x1p-22 + 0x1p-149;
}

TEST(MergeWire, DecodesWithinTheBoundOfItsFormat) {
  for (const Codec format : kMergeFormats) {
    for (const uint64_t values : kRunValues) {
      for (const uint64_t block : {256, 512, 1024}) {
        for (const bool stochastic : {false, true}) {
          const MergeCase c{{format, values, block}, stochastic, 9, 3};
          SCOPED_TRACE(describe(c));
          const std::vector<float> input = merge_values(values, values + block);
          const std::vector<float> output = merge_decoded(c.run, merge_encoded(c, input));
          for (uint64_t i = 0; i < values; ++i) {
            ASSERT_LE(std::abs(double{output[i]} - input[i]), allowed(c, input, i)) << i;
          }
        }
      }
    }
  }
}

TEST(MergeWire, TakesTheBytesThatTheHeaderSays) {
  EXPECT_EQ(merge_block_bytes(Codec::kInt8, 16384), 16384u + 64 * 4);
  EXPECT_EQ(merge_block_bytes(Codec::kInt4, 257), 2u * 4 + 129);
  EXPECT_EQ(merge_block_bytes(Codec::kBf16, 3), 6u);
  EXPECT_EQ(merge_run_bytes(Codec::kInt8, 16384 * 2 + 1, 16384), 2u * 16640 + 5);
  EXPECT_EQ(merge_run_bytes(Codec::kFp32, 0, 256), 0u);
}

TEST(MergeWire, IsTheSameHoweverItIsCutIntoCalls) {
  for (const Codec format : kMergeFormats) {
    const MergeCase whole{{format, 256 * 13 + 77, 256}, true, 5, 40};
    const std::vector<float> input = merge_values(whole.run.values, 3);
    const std::vector<uint8_t> expected = merge_encoded(whole, input);
    std::vector<uint8_t> pieces;
    std::vector<float> sums(whole.run.values, 0.5f), expected_sums(whole.run.values, 0.5f);
    merge_decode_cpu({.run = whole.run,
                      .payload = expected.data(),
                      .weight = 0.3f,
                      .sum = expected_sums.data()});
    uint64_t at = 0;
    for (const uint64_t blocks : {1, 5, 2, 6}) {
      const uint64_t count = std::min(blocks * 256, whole.run.values - at);
      MergeCase part = whole;
      part.run.values = count;
      part.first_block = 40 + at / 256;
      const std::vector<uint8_t> bytes =
          merge_encoded(part, {input.begin() + static_cast<int64_t>(at),
                               input.begin() + static_cast<int64_t>(at + count)});
      merge_decode_cpu(
          {.run = part.run, .payload = bytes.data(), .weight = 0.3f, .sum = sums.data() + at});
      pieces.insert(pieces.end(), bytes.begin(), bytes.end());
      at += count;
    }
    ASSERT_EQ(at, whole.run.values);
    expect_same_bytes(pieces, expected);
    expect_same_bytes(sums, expected_sums);
  }
}

TEST(MergeWire, StochasticRoundingIsUnbiasedAndKeyed) {
  constexpr uint64_t kValues = 256;
  std::vector<float> input(kValues, 0.3f);
  input[0] = 127.0f;  // scale 1
  for (const Codec format : {Codec::kBf16, Codec::kInt8}) {
    double sum = 0;
    std::vector<uint8_t> first;
    constexpr int kRounds = 400;
    for (int round = 0; round < kRounds; ++round) {
      const MergeCase c{{format, kValues, 256}, true, static_cast<uint64_t>(round / 2),
                        static_cast<uint64_t>(round % 2)};
      const std::vector<uint8_t> bytes = merge_encoded(c, input);
      EXPECT_EQ(bytes, merge_encoded(c, input));
      EXPECT_NE(bytes, first);  // another key or another block: other words
      first = bytes;
      const std::vector<float> output = merge_decoded(c.run, bytes);
      EXPECT_EQ(output[0], 127.0f);
      for (uint64_t i = 1; i < kValues; ++i) sum += output[i];
    }
    // Of an int8 code: variance 0.21 a value, 102000 values: five deviations are 0.0072.
    EXPECT_NEAR(sum / (kRounds * (kValues - 1)), 0.3, 0.0072);
  }
}

TEST(MergeWire, WhatIsNotFiniteStaysInItsGroupAndIsSeen) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Codec format : kMergeFormats) {
    for (const float bad : {std::nanf("7"), infinity, -infinity}) {
      const MergeCase c{{format, 768, 256}, false, 1, 0};
      std::vector<float> input(768, 2.0f);
      input[300] = bad;
      const std::vector<uint8_t> bytes = merge_encoded(c, input);
      const std::vector<float> output = merge_decoded(c.run, bytes);
      EXPECT_FALSE(std::isfinite(output[300]));
      EXPECT_NEAR(output[0], 2.0f, 1e-6f);
      EXPECT_NEAR(output[767], 2.0f, 1e-6f);
      if (!has_scales(format)) {
        EXPECT_NEAR(output[301], 2.0f, 1e-6f);
        continue;
      }
      for (uint64_t i = 256; i < 512; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &output[i], 4);
        ASSERT_EQ(bits, 0x7fc00000u);
      }
    }
  }
}

TEST(MergeWire, ZerosAndSubnormalsAreExactWhereTheyCanBe) {
  for (const Codec format : kMergeFormats) {
    const MergeCase c{{format, 600, 256}, true, 1, 0};
    std::vector<float> input(600, 0.0f);
    EXPECT_EQ(merge_decoded(c.run, merge_encoded(c, input)), input);
    const MergeCase nearest{{format, 600, 256}, false, 1, 0};
    input[3] = 0x1p-126f;  // the smallest scale: whole multiples of it are exact
    input[4] = -0x1p-125f;
    EXPECT_EQ(merge_decoded(nearest.run, merge_encoded(nearest, input)), input);
  }
}

TEST(MergeWire, WeightedSumRoundsProductAndSumSeparately) {
  const float one_up = 1.0f + 0x1p-23f;
  const MergeRun run{Codec::kFp32, 1, 256};
  std::vector<uint8_t> payload(4);
  std::memcpy(payload.data(), &one_up, 4);
  float sum = -(1.0f + 0x1p-22f);
  merge_decode_cpu({.run = run, .payload = payload.data(), .weight = one_up, .sum = &sum});
  EXPECT_EQ(sum, 0.0f);  // a fused multiply-add would keep 2^-46
}

TEST(MergeWire, AnyBytesAreDecoded) {
  for (const Codec format : kMergeFormats) {
    Prng random(4);
    const MergeRun run{format, 777, 256};
    std::vector<uint8_t> bytes(merge_run_bytes(format, 777, 256));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    EXPECT_EQ(merge_decoded(run, bytes).size(), 777u);
  }
}

double length_of(const std::vector<float>& values, uint64_t begin, uint64_t end) {
  double squares = 0;
  for (uint64_t i = begin; i < end; ++i) squares += double{values[i]} * values[i];
  return std::sqrt(squares);
}

TEST(MergeFeedback, GivesEachGroupNoMoreThanItsRoundingLeavesOut) {
  for (const Codec format : kMergeFormats) {
    for (const uint64_t count : kRunValues) {
      for (const float scale : {1e-9f, 1e-4f, 1.0f}) {
        SCOPED_TRACE("format " + std::to_string(static_cast<int>(format)) + " values " + std::to_string(count) + " residual " +
                     std::to_string(scale));
        const MergeRun run{format, count, 512};
        const std::vector<float> before = merge_values(count, 5);
        std::vector<float> residual(count);
        for (uint64_t i = 0; i < count; ++i) residual[i] = scale * std::cos(static_cast<float>(i));
        Guarded<float> values(count), rest(count);
        std::copy(before.begin(), before.end(), values.data());
        merge_feedback_cpu({.run = run, .residual = residual.data(), .values = values.data(), .rest = rest.data()});
        const std::vector<float> after(values.data(), values.data() + count), left(rest.data(), rest.data() + count);
        for (uint64_t begin = 0; begin < count; begin += kMergeGroup) {
          const uint64_t end = std::min(count, begin + kMergeGroup);
          std::vector<float> given(count);
          for (uint64_t i = begin; i < end; ++i) given[i] = residual[i] - left[i];
          float peak = 0;
          for (uint64_t i = begin; i < end; ++i) peak = std::max(peak, std::abs(before[i]));
          const double levels = format == Codec::kInt8 ? 127 : 7;
          const double step = has_scales(format) ? std::max(double{peak} / levels, 0x1p-126) : 0;
          double room = 0;
          for (uint64_t i = begin; i < end; ++i) {
            const double error = format == Codec::kFp32 ? 0
                                 : has_scales(format)   ? std::min(std::abs(double{before[i]}), step / std::sqrt(6.0))
                                                        : std::abs(double{before[i]}) * 0x1p-9;
            room += error * error;
          }
          const double whole = length_of(residual, begin, end);
          const double expected = peak == 0 ? 0 : std::min(whole, std::sqrt(room));
          EXPECT_NEAR(length_of(given, begin, end), expected, 1e-5 * whole);
          for (uint64_t i = begin; i < end; ++i) {  // nothing is lost
            const double total = double{before[i]} + residual[i];
            ASSERT_NEAR(double{after[i]} + left[i], total, 0x1p-22 * (std::abs(double{before[i]}) + std::abs(residual[i]))) << i;
          }
        }
      }
    }
  }
}

TEST(MergeFeedback, LeavesAGroupThatIsNotFiniteAlone) {
  std::vector<float> values(2 * kMergeGroup, 1.0f), residual(values.size(), 1e-3f), rest(values.size());
  values[3] = std::numeric_limits<float>::infinity();
  values[kMergeGroup] = std::nanf("");
  merge_feedback_cpu({.run = {Codec::kInt8, values.size(), 512}, .residual = residual.data(), .values = values.data(), .rest = rest.data()});
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[kMergeGroup + 1], 1.0f);
  EXPECT_EQ(rest, residual);
}

TEST(MergeFeedback, ForgetsAResidualThatIsNotFinite) {
  std::vector<float> values(2 * kMergeGroup, 1.0f), residual(values.size(), 1e-3f), rest(values.size(), 7.0f);
  residual[3] = std::nanf("");
  merge_feedback_cpu({.run = {Codec::kInt8, values.size(), 512}, .residual = residual.data(), .values = values.data(), .rest = rest.data()});
  EXPECT_EQ(values[4], 1.0f);
  EXPECT_EQ(rest[3], 0.0f);
  EXPECT_EQ(rest[4], 0.0f);
  EXPECT_EQ(values[kMergeGroup], 1.001f);
}

TEST(MergeDots, AreWithinDoubleRoundingAndOfFixedOrder) {
  for (const uint64_t values : kRunValues) {
    const std::vector<float> a = merge_values(values, 1), b = merge_values(values, 8);
    const uint64_t blocks = (values + 511) / 512;
    Guarded<double> dots(blocks);
    merge_dots_cpu({.values = values, .block_values = 512, .a = a.data(), .b = b.data(), .dots = dots.data()});
    const std::vector<double> actual = dots.copy();
    for (uint64_t block = 0; block < blocks; ++block) {
      long double exact = 0, magnitude = 0;
      for (uint64_t i = block * 512; i < std::min(values, block * 512 + 512); ++i) {
        exact += static_cast<long double>(a[i]) * b[i];
        magnitude += std::abs(static_cast<long double>(a[i]) * b[i]);
      }
      ASSERT_LE(std::abs(actual[block] - exact), 520 * 0x1p-53L * magnitude);
    }
  }
  // Lanes first: in plain order the small ones would be lost.
  std::vector<float> ones(512, 1.0f), numbers(512, 1.0f);
  numbers[0] = 0x1p60f;
  numbers[256] = -0x1p60f;
  double dot = 0;
  merge_dots_cpu({.values = 512, .block_values = 512, .a = numbers.data(), .b = ones.data(), .dots = &dot});
  EXPECT_EQ(dot, 510.0);
}

TEST(MergeDots, MayMeetTheSameBlocksAgain) {
  const std::vector<float> a = merge_values(6 * 256, 2), b = merge_values(2 * 256, 9);
  std::vector<double> dots(6);
  merge_dots_cpu(
      {.values = a.size(), .block_values = 256, .a = a.data(), .b = b.data(), .b_values = b.size(), .dots = dots.data()});
  for (uint64_t block = 0; block < 6; ++block) {
    double alone = 0;
    merge_dots_cpu(
        {.values = 256, .block_values = 256, .a = a.data() + block * 256, .b = b.data() + block % 2 * 256, .dots = &alone});
    EXPECT_EQ(dots[block], alone);
  }
}

TEST(MergeFactors, GiveEveryInputItsWeightAndLeaveOutWhatHasNoDirection) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> energies = {4.0, 0.0, infinity, 9e-60, 1e-60, std::nan("")};
  const std::vector<float> weights = {0.5f, 3.0f};
  Guarded<float> guarded(6);
  merge_factors_cpu({3, 2, weights.data(), energies.data(), guarded.data()});
  const std::vector<float> factors = guarded.copy();
  EXPECT_EQ(factors[0], 0.25f);
  EXPECT_TRUE(std::isnan(factors[1]) && std::isnan(factors[2]));
  EXPECT_EQ(factors[3], 1e30f);
  EXPECT_TRUE(std::isnan(factors[4]) && std::isnan(factors[5]));
}

TEST(MergeScaledSum, HasAFactorForEachInputAndBlock) {
  const float nan = std::nanf("");
  const std::vector<float> three(600, 3.0f), one(600, 1.0f), broken(600, nan);
  const std::vector<const float*> inputs = {three.data(), broken.data(), one.data()};
  const std::vector<float> factors = {1.0f, 2.0f, nan, nan, nan, nan, 1.0f, -1.0f, nan};
  Guarded<float> guarded(600);
  merge_scaled_sum_cpu({.values = 600,
                        .block_values = 256,
                        .inputs = inputs.data(),
                        .input_count = 3,
                        .factors = factors.data(),
                        .out = guarded.data()});
  const std::vector<float> out = guarded.copy();
  EXPECT_EQ(out[0], 4.0f);
  EXPECT_EQ(out[256], 5.0f);
  EXPECT_EQ(out[599], 0.0f);
}

TEST(MergeWire, BlocksOfARunMayHaveAnyNumbers) {
  const std::vector<float> input = merge_values(1024, 1);
  const std::vector<uint64_t> numbers = {9, 2, 0, 77};
  for (const Codec format : kMergeFormats) {
    MergeCase c{{format, 1024, 256}, true, 5, 0};
    std::vector<uint8_t> together(merge_run_bytes(format, 1024, 256)), alone;
    merge_encode_cpu({.run = c.run,
                      .input = input.data(),
                      .stochastic = true,
                      .seed = c.seed,
                      .numbers = numbers.data(),
                      .payload = together.data()});
    for (uint64_t block = 0; block < 4; ++block) {
      const MergeCase one{{format, 256, 256}, true, 5, numbers[block]};
      const std::vector<uint8_t> bytes = merge_encoded(one, {input.begin() + 256 * block, input.begin() + 256 * (block + 1)});
      alone.insert(alone.end(), bytes.begin(), bytes.end());
    }
    expect_same_bytes(together, alone);
  }
}

TEST(TrimmedMean, LeavesOutTheFarthestWhateverTheyAre) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> inputs = {
      {1, -1, 5}, {2, -2, 5}, {3, -3, 5}, {infinity, -1e30f, std::nanf("")}, {-1e38f, 7, -infinity}};
  std::vector<const float*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  Guarded<float> out(3);
  trimmed_mean_cpu({.inputs = pointers.data(), .input_count = 5, .trim = 1, .values = 3, .out = out.data()});
  EXPECT_EQ(out.copy(), (std::vector<float>{2, -2, 5}));
  trimmed_mean_cpu({.inputs = pointers.data(), .input_count = 3, .trim = 0, .values = 2, .out = out.data()});
  EXPECT_EQ(out.copy()[0], 2.0f);
}

TEST(TrimmedMean, DoesNotDependOnTheOrderOfTheInputs) {
  std::vector<std::vector<float>> inputs;
  for (uint64_t k = 0; k < 9; ++k) inputs.push_back(merge_values(500, k));
  const auto mean = [&] {
    std::vector<const float*> pointers;
    for (const auto& input : inputs) pointers.push_back(input.data());
    std::vector<float> out(500);
    trimmed_mean_cpu(
        {.inputs = pointers.data(), .input_count = 9, .trim = 2, .values = 500, .out = out.data()});
    return out;
  };
  const std::vector<float> first = mean();
  std::reverse(inputs.begin(), inputs.end());
  expect_same_bytes(mean(), first);
}

TEST(MergeWireDeathTest, ABlockOfBrokenGroupsIsABug) {
  EXPECT_DEATH(merge_encode_cpu({.run = {Codec::kInt8, 0, 300}}), "block_values");
  EXPECT_DEATH(trimmed_mean_cpu({.input_count = 2, .trim = 1}), "trim");
}

}  // namespace
}  // namespace tessera::kernels
