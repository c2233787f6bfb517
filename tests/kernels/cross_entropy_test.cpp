// The reference of the cross-entropy kernels against plain softmax in extended precision.
#include <gtest/gtest.h>

#include "kernels/cross_entropy_fixture.h"

namespace tessera::kernels {
namespace {

const auto kLaunch = [](const CrossEntropyParams& p) { cross_entropy_cpu(p); };
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(CrossEntropy, MatchesTheFormulas) {
  for (const Real type : kReals) {
    for (const auto& [vocabulary, columns] :
         {std::pair<int64_t, int64_t>{1, 1}, {2, 8}, {7, 7}, {50, 64}, {257, 384}}) {
      const CrossEntropyCase c = {type, 5, vocabulary, columns, 0.125f};
      SCOPED_TRACE(name_of(type) + " vocabulary " + std::to_string(vocabulary));
      CrossEntropyNumbers numbers = cross_entropy_numbers(c, 17);
      for (size_t i = 0; i < numbers.logits.size(); ++i) {  // padding: must not be looked at
        if (static_cast<int64_t>(i) % columns >= vocabulary) numbers.logits[i] = kNan;
      }
      std::vector<double> losses(5);
      std::vector<double> gradient(numbers.logits.size());
      for (int64_t row = 0; row < c.rows; ++row) {
        // Without a shift: long double reaches exp(11356).
        long double sum = 0.0L;
        const float* logits = numbers.logits.data() + row * columns;
        for (int64_t i = 0; i < vocabulary; ++i)
          sum += std::exp(static_cast<long double>(logits[i]));
        const int32_t target = numbers.targets[row];
        losses[row] = static_cast<double>(std::log(sum) - logits[target]);
        for (int64_t i = 0; i < vocabulary; ++i) {
          const long double share = std::exp(static_cast<long double>(logits[i])) / sum;
          gradient[row * columns + i] = static_cast<double>((share - (i == target)) * c.scale);
        }
      }
      const CrossEntropyResult result = cross_entropy<HostBytes>(c, numbers, kLaunch);
      expect_close(result.losses, losses, Real::kFloat32,
                   [&](size_t row) { return 0x1p-40 * loss_scale(c, numbers, row); });
      expect_close(result.logits, gradient, type, [&](size_t) { return 0x1p-40 * c.scale; });

      CrossEntropyCase loss_only = c;
      loss_only.gradient = false;
      const CrossEntropyResult kept = cross_entropy<HostBytes>(loss_only, numbers, kLaunch);
      expect_same_bits(kept.losses, result.losses);
      expect_same_bits(kept.logits, numbers.logits);
    }
  }
}

TEST(CrossEntropy, BadTargetsCountAsNanAndDoNoHarm) {
  const CrossEntropyCase c = {Real::kFloat32, 5, 6, 8};
  CrossEntropyNumbers numbers = cross_entropy_numbers(c, 2);
  numbers.targets = {-1, 6, 2, std::numeric_limits<int32_t>::max(),
                     std::numeric_limits<int32_t>::min()};
  const CrossEntropyResult result = cross_entropy<HostBytes>(c, numbers, kLaunch);
  for (int row = 0; row < 5; ++row) {
    EXPECT_EQ(std::isnan(result.losses[row]), row != 2);
    for (int i = 0; i < 8 && row != 2; ++i) EXPECT_EQ(result.logits[row * 8 + i], 0.0f);
  }
}

TEST(CrossEntropy, InfinitiesAndNan) {
  const CrossEntropyCase c = {Real::kFloat32, 4, 3, 3};
  const CrossEntropyNumbers numbers = {{-kInfinity, 0.0f, 0.0f,              // no share
                                        -kInfinity, -kInfinity, -kInfinity,  // no number
                                        1.0f, kNan, 2.0f,                    //
                                        1.0f, kInfinity, 2.0f},
                                       {1, 0, 0, 0}};
  const CrossEntropyResult result = cross_entropy<HostBytes>(c, numbers, kLaunch);
  EXPECT_FLOAT_EQ(result.losses[0], std::log(2.0f));
  EXPECT_EQ(result.logits[0], 0.0f);
  EXPECT_FLOAT_EQ(result.logits[1], -0.5f);
  for (int row = 1; row < 4; ++row) EXPECT_TRUE(std::isnan(result.losses[row])) << row;
}

TEST(CrossEntropyDeathTest, BrokenSizesAbort) {
  EXPECT_DEATH(cross_entropy_cpu({.rows = 1, .vocabulary = 9, .columns = 8}), "");
  EXPECT_DEATH(cross_entropy_cpu({.rows = 1, .vocabulary = 8, .columns = 8}), "");
}

}  // namespace
}  // namespace tessera::kernels
