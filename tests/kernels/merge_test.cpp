// The arithmetic of a merge: exact bits against hand-written loops, closeness to double precision,
// guard words.
#include "tessera/kernels/merge.h"

#include <gtest/gtest.h>

#include "kernels/codec_fixture.h"

namespace tessera::kernels {
namespace {

// Sizes around the vector widths and the chunk of the implementation.
constexpr size_t kCounts[] = {0, 1, 3, 4, 15, 64, 2047, 2048, 2049, 5000};

std::vector<float> numbers(size_t count, uint64_t seed) {
  return count == 0 ? std::vector<float>() : random_rows(1, static_cast<int64_t>(count), seed);
}

std::vector<float> weighted_sum(const std::vector<std::vector<float>>& inputs,
                                const std::vector<float>& weights, size_t count) {
  std::vector<const float*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  Guarded<float> out(count);
  weighted_sum_cpu(pointers.data(), weights.data(), inputs.size(), count, out.data());
  return out.copy();
}

TEST(WeightedSum, AddsInTheOrderOfTheInputs) {
  // (1e8 + 1) - 1e8 = 0 in float, (1e8 - 1e8) + 1 = 1.
  const std::vector<std::vector<float>> inputs = {{1e8f}, {1.0f}, {-1e8f}};
  EXPECT_EQ(weighted_sum(inputs, {1.0f, 1.0f, 1.0f}, 1)[0], 0.0f);
  EXPECT_EQ(weighted_sum({inputs[0], inputs[2], inputs[1]}, {1.0f, 1.0f, 1.0f}, 1)[0], 1.0f);
}

TEST(WeightedSum, RoundsProductAndSumSeparately) {
  // 1 + 2^-23 squared is 1 + 2^-22 + 2^-46: the product drops 2^-46, a fused multiply-add would
  // keep it.
  const float one_up = 1.0f + 0x1p-23f;
  const float minus = -(1.0f + 0x1p-22f);
  EXPECT_EQ(weighted_sum({{minus}, {one_up}}, {1.0f, one_up}, 1)[0], 0.0f);
}

TEST(WeightedSum, StartsFromPositiveZero) {
  const float sum = weighted_sum({{-0.0f}}, {1.0f}, 1)[0];
  EXPECT_FALSE(std::signbit(sum));
  EXPECT_EQ(weighted_sum({}, {}, 3), (std::vector<float>{0.0f, 0.0f, 0.0f}));
}

TEST(WeightedSum, EqualsTheLoopBitForBitAndDoublePrecisionClosely) {
  for (const size_t count : kCounts) {
    for (const size_t input_count : {1, 2, 5, 18}) {
      std::vector<std::vector<float>> inputs;
      std::vector<float> weights;
      for (size_t k = 0; k < input_count; ++k) {
        inputs.push_back(numbers(count, 31 * k + count));
        weights.push_back(static_cast<float>(2 * (k + 1)) / (input_count * (input_count + 1)));
      }
      const std::vector<float> sum = weighted_sum(inputs, weights, count);
      for (size_t i = 0; i < count; ++i) {
        volatile float expected = 0.0f;  // volatile: no optimisation touches the order
        double exact = 0.0;
        double magnitude = 0.0;
        for (size_t k = 0; k < input_count; ++k) {
          volatile float product = weights[k] * inputs[k][i];
          expected = expected + product;
          exact += static_cast<double>(weights[k]) * inputs[k][i];
          magnitude += std::abs(static_cast<double>(weights[k]) * inputs[k][i]);
        }
        ASSERT_EQ(sum[i], static_cast<float>(expected)) << count << " " << input_count << " " << i;
        // docs/numerics.md: n + 1 roundings of 2^-24 each.
        ASSERT_LE(std::abs(sum[i] - exact), magnitude * 0x1p-24 * (input_count + 1) + 0x1p-149);
      }
    }
  }
}

TEST(OuterStep, EqualsTheLoopBitForBitAndDoublePrecisionClosely) {
  const float lr = 0.7f;
  const float mu = 0.9f;
  for (const size_t count : kCounts) {
    std::vector<float> base = numbers(count, 1);
    std::vector<float> momentum = numbers(count, 2);
    std::vector<double> exact_base(base.begin(), base.end());
    std::vector<double> exact_momentum(momentum.begin(), momentum.end());
    Guarded<float> guarded_base(count);
    Guarded<float> guarded_momentum(count);
    std::copy(base.begin(), base.end(), guarded_base.data());
    std::copy(momentum.begin(), momentum.end(), guarded_momentum.data());
    for (int step = 0; step < 5; ++step) {
      const std::vector<float> delta = numbers(count, 10 + step);
      outer_step_cpu(guarded_base.data(), guarded_momentum.data(), delta.data(), count, lr, mu);
      for (size_t i = 0; i < count; ++i) {
        volatile float decayed = mu * momentum[i];
        momentum[i] = decayed + delta[i];
        volatile float ahead = mu * momentum[i];
        volatile float direction = delta[i] + ahead;
        volatile float change = lr * direction;
        base[i] = base[i] - change;
        exact_momentum[i] = static_cast<double>(mu) * exact_momentum[i] + delta[i];
        exact_base[i] -=
            static_cast<double>(lr) * (delta[i] + static_cast<double>(mu) * exact_momentum[i]);
      }
      ASSERT_EQ(guarded_base.copy(), base) << count << " step " << step;
      ASSERT_EQ(guarded_momentum.copy(), momentum) << count << " step " << step;
    }
    for (size_t i = 0; i < count; ++i) {
      ASSERT_NEAR(base[i], exact_base[i], 5e-3)
          << i;  // magnitudes reach 2^11: 2^-24 of it, some 30 times
    }
  }
}

TEST(OuterStep, WithoutMomentumAndWithRateOneIsTheMean) {
  std::vector<float> base = {1.0f, -2.0f};
  std::vector<float> momentum = {0.0f, 0.0f};
  const std::vector<float> delta = {0.25f, -0.5f};
  outer_step_cpu(base.data(), momentum.data(), delta.data(), 2, 1.0f, 0.0f);
  EXPECT_EQ(base, (std::vector<float>{0.75f, -1.5f}));
  EXPECT_EQ(momentum, delta);
}

TEST(OuterStep, FirstStepOfNesterovGoesOnePlusMuTimesDelta) {
  std::vector<float> base = {0.0f};
  std::vector<float> momentum = {0.0f};
  const float delta = 1.0f;
  outer_step_cpu(base.data(), momentum.data(), &delta, 1, 0.5f, 0.5f);
  EXPECT_EQ(base[0], -0.75f);
  EXPECT_EQ(momentum[0], 1.0f);
}

TEST(CarryOver, KeepsLocalWork) {
  for (const size_t count : kCounts) {
    const std::vector<float> snapshot = numbers(count, 1);
    const std::vector<float> base_new = numbers(count, 2);
    const std::vector<float> now = numbers(count, 3);
    Guarded<float> theta(count);
    std::copy(now.begin(), now.end(), theta.data());
    carry_over_cpu(theta.data(), snapshot.data(), base_new.data(), count);
    const std::vector<float> result = theta.copy();
    for (size_t i = 0; i < count; ++i) {
      volatile float work = now[i] - snapshot[i];
      ASSERT_EQ(result[i], base_new[i] + work) << count << " " << i;
    }
  }
}

TEST(CarryOver, WithoutLocalWorkGivesTheNewBaseExactly) {
  const std::vector<float> snapshot = {0.1f, 1e30f, -3.0f};
  const std::vector<float> base_new = {0.3f, 5.0f, 1e-40f};
  std::vector<float> theta = snapshot;
  carry_over_cpu(theta.data(), snapshot.data(), base_new.data(), theta.size());
  EXPECT_EQ(theta, base_new);
}

}  // namespace
}  // namespace tessera::kernels
