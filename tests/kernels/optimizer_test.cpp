// The CPU's optimizer kernels against the formulas in double precision, at odd sizes and with
// numbers at both ends of fp32's range.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "kernels/guarded.h"
#include "kernels/optimizer_fixture.h"

namespace tessera::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

GradientNorm norm_of(const std::vector<float>& gradient, uint32_t microbatches = 1,
                     double clip_norm = 0, int64_t tiles_at_a_time = 1000000) {
  const std::vector<OptimizerChunk> chunks = whole_chunks(static_cast<int64_t>(gradient.size()));
  const int64_t tiles = static_cast<int64_t>(chunks.size());
  Guarded<double> partials(chunks.size());
  Guarded<GradientNorm> result(1);
  NormParams params;
  params.gradient.flat = gradient.data();
  params.chunks = chunks.data();
  params.chunk_count = tiles;
  params.microbatches = microbatches;
  params.clip_norm = clip_norm;
  params.partials = partials.data();
  params.result = result.data();
  for (int64_t begin = 0; begin < tiles; begin += tiles_at_a_time) {
    norm_partials_cpu(params, begin, std::min(tiles, begin + tiles_at_a_time));
  }
  finish_norm_cpu(params);
  return result.copy()[0];
}

TEST(GradientNorm, IsTheRootOfTheSumOfSquaresAtEverySize) {
  for (const int64_t count : {1, 2, 31, 32, 33, 511, 512, 513, 1000, 16383, 16384, 16385, 100003}) {
    const std::vector<float> gradient = random_values(count, 3.0, static_cast<uint64_t>(count));
    double sum = 0;
    for (const float value : gradient) sum += static_cast<double>(value) * value;
    const double expected = std::sqrt(sum) / 3;
    const GradientNorm norm = norm_of(gradient, 3);
    EXPECT_NEAR(norm.norm, expected, 1e-6 * expected) << count;
    EXPECT_EQ(norm.scale, 1.0f / 3) << count;
    EXPECT_EQ(norm.finite, 1) << count;
    // Threads that share the work give the same bits.
    EXPECT_EQ(norm_of(gradient, 3, 0, 1).norm, norm.norm) << count;
  }
}

TEST(GradientNorm, ClipsToTheWantedNorm) {
  const std::vector<float> gradient(400, 0.5f);  // norm 10
  EXPECT_NEAR(norm_of(gradient, 1, 2.5).scale, 0.25, 1e-6);
  EXPECT_NEAR(norm_of(gradient, 4, 1.25).scale, 0.125, 1e-6);
  EXPECT_EQ(norm_of(gradient, 4, 2.6).scale, 0.25f);
  EXPECT_EQ(norm_of(gradient, 1, 0).scale, 1.0f);
}

TEST(GradientNorm, OfNothingIsZero) {
  for (const std::vector<float>& gradient :
       {std::vector<float>{}, std::vector<float>(1000, 0.0f), std::vector<float>(77, -0.0f),
        std::vector<float>(9, std::numeric_limits<float>::denorm_min())}) {
    const GradientNorm norm = norm_of(gradient, 2, 1.0);
    EXPECT_EQ(norm.norm, 0);
    EXPECT_EQ(norm.scale, 0.5f);
    EXPECT_EQ(norm.finite, 1);
  }
}

// One number anywhere is enough. Squares that leave fp32's range count as not finite.
TEST(GradientNorm, OfNumbersThatAreNotFiniteIsNotFinite) {
  for (const float bad : {kInfinity, -kInfinity, kNan, 1e20f}) {
    for (const size_t count : {1, 40, 16400}) {
      for (const size_t at : {size_t{0}, count / 2, count - 1}) {
        std::vector<float> gradient(count, 1.0f);
        gradient[at] = bad;
        EXPECT_EQ(norm_of(gradient, 1, 1.0).finite, 0) << bad << " at " << at << " of " << count;
      }
    }
  }
  EXPECT_EQ(norm_of({1e18f, 9e18f}).finite, 1);
}

TEST(OptimizerChunks, TileTheSegmentsAndNothingElse) {
  const std::vector<OptimizerSegment> segments = {
      {3, 7, true}, {10, 30000, true}, {30010, 5, false}, {40000, 8192, false}};
  std::vector<int> decays(50000, -1);
  size_t longest = 0;
  for (const OptimizerChunk& chunk : optimizer_chunks(segments)) {
    ASSERT_GT(chunk.count, 0);
    longest = std::max(longest, static_cast<size_t>(chunk.count));
    for (int64_t i = 0; i < chunk.count; ++i) {
      int& value = decays[static_cast<size_t>(chunk.offset + i)];
      ASSERT_EQ(value, -1);
      value = chunk.decays;
    }
  }
  for (size_t i = 0; i < decays.size(); ++i) {
    const bool matrix = i >= 3 && i < 30010;
    const bool vector = (i >= 30010 && i < 30015) || (i >= 40000 && i < 48192);
    ASSERT_EQ(decays[i], matrix ? 1 : vector ? 0 : -1) << i;
  }
  EXPECT_EQ(longest, 8192u);
  EXPECT_EQ(optimizer_chunks({{0, 8192, true}, {8192, 8192, true}}).size(), 2u);
  EXPECT_TRUE(optimizer_chunks({}).empty());
}

TEST(OptimizerChunks, NeverCrossTwoPiecesOfTheGradient) {
  const std::vector<int64_t> pieces = odd_pieces(40000);
  std::vector<int64_t> ends(pieces.begin() + 1, pieces.end());
  ends.push_back(40000);
  int64_t next = 0;
  for (const OptimizerChunk& chunk : optimizer_chunks(odd_segments(40000), pieces)) {
    ASSERT_EQ(chunk.offset, next);
    next += chunk.count;
    ASSERT_GE(chunk.gradient_offset, 0);
    EXPECT_EQ(chunk.offset, pieces[chunk.piece] + chunk.gradient_offset);
    EXPECT_LE(next, ends[chunk.piece]);
  }
  EXPECT_EQ(next, 40000);
}

TEST(GradientPieces, NormAndStepHaveTheBitsOfTheFlatGradient) {
  constexpr int64_t kCount = 40003;
  const AdamState state = random_state(kCount, 8);
  const std::vector<int64_t> starts = odd_pieces(kCount);
  const std::vector<std::vector<float>> apart = in_pieces(state.gradient, starts);
  std::vector<const float*> places;
  for (const std::vector<float>& piece : apart) places.push_back(piece.data());
  const std::vector<OptimizerChunk> chunks = optimizer_chunks(odd_segments(kCount), starts);
  std::vector<double> partials(chunks.size());
  GradientNorm norm;
  NormParams norm_params;
  norm_params.gradient.pieces = places.data();
  norm_params.chunks = chunks.data();
  norm_params.chunk_count = static_cast<int64_t>(chunks.size());
  norm_params.partials = partials.data();
  norm_params.result = &norm;
  norm_partials_cpu(norm_params, 0, norm_params.chunk_count);
  finish_norm_cpu(norm_params);
  EXPECT_NEAR(norm.norm, norm_of(state.gradient).norm, 1e-6 * norm.norm);
  AdamState flat = state, split = state;
  for (AdamState* moved : {&flat, &split}) {
    AdamParams params;
    params.chunks = chunks.data();
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.values = moved->values.data();
    params.first_moment = moved->first.data();
    params.second_moment = moved->second.data();
    params.constants = all_constants()[1];
    params.norm = &norm;
    if (moved == &split) params.gradient.pieces = places.data();
    std::vector<OptimizerChunk> own = chunks;
    if (moved == &flat) {
      params.gradient.flat = state.gradient.data();
      own = optimizer_chunks(odd_segments(kCount));
      params.chunks = own.data();
      params.chunk_count = static_cast<int64_t>(own.size());
    }
    adam_step_cpu(params, 0, params.chunk_count);
  }
  EXPECT_EQ(split.values, flat.values);
  EXPECT_EQ(split.first, flat.first);
  EXPECT_EQ(split.second, flat.second);
  EXPECT_NE(flat.values, state.values);
}

// One step of params over guarded copies of a state.
class GuardedStep {
 public:
  explicit GuardedStep(const AdamState& state)
      : values_(state.values.size()),
        first_(state.values.size()),
        second_(state.values.size()),
        weights_float_(state.values.size()),
        weights_bfloat16_(state.values.size()),
        gradient_(state.gradient) {
    std::copy(state.values.begin(), state.values.end(), values_.data());
    std::copy(state.first.begin(), state.first.end(), first_.data());
    std::copy(state.second.begin(), state.second.end(), second_.data());
  }
  void run(const std::vector<OptimizerSegment>& segments, const AdamConstants& constants,
           const GradientNorm& norm) {
    const std::vector<OptimizerChunk> chunks = optimizer_chunks(segments);
    AdamParams params;
    params.chunks = chunks.data();
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.values = values_.data();
    params.gradient.flat = gradient_.data();
    params.first_moment = first_.data();
    params.second_moment = second_.data();
    params.weights_float = weights_float_.data();
    params.weights_bfloat16 = weights_bfloat16_.data();
    params.constants = constants;
    params.norm = &norm;
    const int64_t half = params.chunk_count / 2;  // as two threads would
    adam_step_cpu(params, half, params.chunk_count);
    adam_step_cpu(params, 0, half);
  }
  std::vector<float> values() const { return values_.copy(); }
  std::vector<float> first() const { return first_.copy(); }
  std::vector<float> second() const { return second_.copy(); }
  std::vector<float> weights() const { return weights_float_.copy(); }
  std::vector<uint16_t> rounded_weights() const { return weights_bfloat16_.copy(); }

 private:
  Guarded<float> values_, first_, second_, weights_float_;
  Guarded<uint16_t> weights_bfloat16_;
  std::vector<float> gradient_;
};

void expect_near(double measured, double expected, double scale, const char* what, size_t at) {
  ASSERT_LE(std::abs(measured - expected), 1e-6 * scale) << what << " " << at;
}

// Every number within 1e-6 of the terms it is made of.
TEST(AdamStep, IsTheFormulaInDoublePrecision) {
  const GradientNorm norm{1, 0.25f, 1};
  for (const int64_t count : {1, 6, 1040, 9000, 60001}) {
    const std::vector<OptimizerSegment> segments = odd_segments(count);
    for (const AdamConstants& c : all_constants()) {
      const AdamState state = random_state(count, static_cast<uint64_t>(count));
      GuardedStep step(state);
      step.run(segments, c, norm);
      const std::vector<float> values = step.values(), first = step.first(), second = step.second();
      for (const OptimizerSegment& segment : segments) {
        for (int64_t k = segment.offset; k < segment.offset + segment.count; ++k) {
          const size_t i = static_cast<size_t>(k);
          const double g = 0.25 * state.gradient[i];
          const double m = double{c.beta1} * state.first[i] + double{c.first_rate} * g;
          const double v = double{c.beta2} * state.second[i] + double{c.second_rate} * g * g;
          const double change = (double{c.gradient_weight} * g + double{c.moment_weight} * m) /
                                (std::sqrt(v) * c.root_scale + double{c.epsilon});
          const double keep = segment.decays ? c.keep : 1.0;
          expect_near(first[i], m, std::abs(state.first[i]) + std::abs(g), "first", i);
          expect_near(second[i], v, v, "second", i);
          // The numerator may cancel: its error is measured by its terms.
          const double terms = (c.gradient_weight * std::abs(g) +
                                c.moment_weight * (std::abs(state.first[i]) + std::abs(g))) /
                               (std::sqrt(v) * c.root_scale + double{c.epsilon});
          expect_near(values[i], keep * state.values[i] - change, std::abs(state.values[i]) + terms,
                      "value", i);
        }
      }
    }
  }
}

TEST(AdamStep, WritesTheComputeWeightsOfTheNewValues) {
  const AdamState state = random_state(30011, 4);
  GuardedStep step(state);
  step.run(odd_segments(30011), adamw_constants(usual_settings(), 1e-2, 3), {1, 1.0f, 1});
  const std::vector<float> values = step.values();
  EXPECT_EQ(step.weights(), values);
  const std::vector<uint16_t> rounded = step.rounded_weights();
  for (size_t i = 0; i < rounded.size(); ++i) {
    const float weight = std::bit_cast<float>(static_cast<uint32_t>(rounded[i]) << 16);
    ASSERT_LE(std::abs(weight - values[i]), std::abs(values[i]) / 256) << i;  // half of 2^-7
  }
}

TEST(AdamStep, LeavesWhatIsInNoSegmentAlone) {
  const AdamState state = random_state(100, 6);
  GuardedStep step(state);
  step.run({{10, 20, true}, {50, 5, false}}, adamw_constants(usual_settings(), 1e-2, 1),
           {1, 1.0f, 1});
  const std::vector<float> values = step.values(), second = step.second();
  for (size_t i = 0; i < 100; ++i) {
    const bool covered = (i >= 10 && i < 30) || (i >= 50 && i < 55);
    EXPECT_EQ(values[i] != state.values[i], covered) << i;
    EXPECT_EQ(second[i] != state.second[i], covered) << i;
  }
}

TEST(AdamStep, WithoutAFiniteNormOnlyWritesTheComputeWeights) {
  AdamState state = random_state(9001, 8);
  state.gradient[17] = kNan;
  GuardedStep step(state);
  step.run(odd_segments(9001), adamw_constants(usual_settings(), 1e-2, 1), {kNan, kNan, 0});
  EXPECT_EQ(step.values(), state.values);
  EXPECT_EQ(step.first(), state.first);
  EXPECT_EQ(step.second(), state.second);
  EXPECT_EQ(step.weights(), state.values);
}

TEST(AdamStep, KeepsExtremeNumbersFinite) {
  const AdamState state = extreme_state(5000);
  for (const AdamConstants& constants : all_constants()) {
    GuardedStep step(state);
    step.run({{0, 5000, true}}, constants, {1, 1.0f, 1});
    for (const std::vector<float>& numbers : {step.values(), step.first(), step.second()}) {
      for (size_t i = 0; i < numbers.size(); ++i) ASSERT_TRUE(std::isfinite(numbers[i])) << i;
    }
  }
}

TEST(AdamStep, AGradientOfZeroOnlyDecays) {
  AdamState state = random_state(20, 9);
  std::fill(state.gradient.begin(), state.gradient.end(), 0.0f);
  std::fill(state.first.begin(), state.first.end(), 0.0f);
  std::fill(state.second.begin(), state.second.end(), 0.0f);
  GuardedStep step(state);
  const AdamConstants constants = adamw_constants(usual_settings(), 0.5, 1);
  EXPECT_EQ(constants.keep, 0.95f);
  step.run({{0, 10, true}, {10, 10, false}}, constants, {0, 1.0f, 1});
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(step.values()[i], i < 10 ? state.values[i] * 0.95f : state.values[i]) << i;
  }
}

TEST(NadamMomentum, WarmsUpToBeta1) {
  const AdamSettings settings = usual_settings();
  EXPECT_NEAR(nadam_momentum(settings, 1), 0.9 * (1 - 0.5 * std::pow(0.96, 0.004)), 1e-15);
  EXPECT_NEAR(nadam_momentum(settings, 1000000), 0.9, 1e-12);
}

}  // namespace
}  // namespace tessera::kernels
