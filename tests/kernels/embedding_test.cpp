// The reference of the embedding kernels against the formulas in double precision.
#include <gtest/gtest.h>

#include "kernels/embedding_fixture.h"

namespace tessera::kernels {
namespace {

constexpr double kEpsilon = 1e-5f;
const auto kForward = [](const EmbeddingForwardParams& p) { embedding_forward_cpu(p); };
const auto kBackward = [](const EmbeddingBackwardParams& p) { embedding_backward_cpu(p); };

double row_rstd(const EmbeddingCase& c, const EmbeddingNumbers& numbers, int64_t id) {
  double squares = 0.0;
  for (int64_t i = id * c.width; i < (id + 1) * c.width; ++i) {
    squares += double{numbers.table[i]} * numbers.table[i];
  }
  return 1.0 / std::sqrt(squares / static_cast<double>(c.width) + kEpsilon);
}

// Token by token, each through its own normalisation: not as the kernel does it.
std::vector<double> table_gradient(const EmbeddingCase& c, const EmbeddingNumbers& numbers) {
  std::vector<double> gradient(numbers.before.size());
  std::vector<bool> seen(static_cast<size_t>(c.vocabulary));
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t id = numbers.ids[row];
    seen[id] = true;
    const double rstd = c.normalise ? row_rstd(c, numbers, id) : 1.0;
    double mean = 0.0;
    for (int64_t i = 0; i < c.width && c.normalise; ++i) {
      mean += numbers.dy[row * c.width + i] * (numbers.table[id * c.width + i] * rstd) /
              static_cast<double>(c.width);
    }
    for (int64_t i = 0; i < c.width; ++i) {
      const double n = numbers.table[id * c.width + i] * rstd;
      gradient[id * c.width + i] += rstd * (numbers.dy[row * c.width + i] - n * mean);
    }
  }
  for (size_t i = 0; i < gradient.size(); ++i) {
    if (c.accumulate || !seen[i / static_cast<size_t>(c.width)]) gradient[i] += numbers.before[i];
  }
  return gradient;
}

TEST(Embedding, MatchesTheFormulas) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 5, 8, 40, 300}) {
      for (int variant = 0; variant < 4; ++variant) {
        const EmbeddingCase c = {type, 90, width, 30, variant % 2 != 0, variant / 2 != 0};
        SCOPED_TRACE(name_of(type) + " width " + std::to_string(width) + " variant " +
                     std::to_string(variant));
        const EmbeddingNumbers numbers = embedding_numbers(c, static_cast<uint64_t>(width));
        std::vector<double> y;
        std::vector<double> rstds;
        for (const int32_t id : numbers.ids) {
          const double rstd = c.normalise ? row_rstd(c, numbers, id) : 1.0;
          if (c.normalise) rstds.push_back(rstd);
          for (int64_t i = 0; i < width; ++i) y.push_back(numbers.table[id * width + i] * rstd);
        }
        const EmbeddingForward forward = embedding_forward<HostBytes>(c, numbers, kForward);
        expect_close(forward.y, y, type, [](size_t) { return 0.0; });
        expect_close(forward.rstd, rstds, Real::kFloat32, [](size_t) { return 0.0; });
        const std::vector<double> scales = table_scales(c, numbers);
        expect_close(embedding_backward<HostBytes>(c, numbers, kBackward),
                     table_gradient(c, numbers), Real::kFloat32, [&](size_t i) {
                       return 0x1p-20 * (scales[i / static_cast<size_t>(width)] +
                                         std::abs(numbers.before[i]));
                     });
      }
    }
  }
}

TEST(Embedding, UnknownIdsAreNanAndTouchNothing) {
  const EmbeddingCase c = {Real::kBfloat16, 3, 4, 5, true, true};
  EmbeddingNumbers numbers = embedding_numbers(c, 1);
  numbers.ids = {-1, 5, std::numeric_limits<int32_t>::max()};
  for (const float y : embedding_forward<HostBytes>(c, numbers, kForward).y) {
    EXPECT_TRUE(std::isnan(y));
  }
  expect_same_bits(embedding_backward<HostBytes>(c, numbers, kBackward), numbers.before);
}

TEST(EmbeddingDeathTest, BrokenSizesAbort) {
  EXPECT_DEATH(embedding_forward_cpu({.rows = 1, .width = 4, .vocabulary = 0}), "");
  EXPECT_DEATH(embedding_forward_cpu({.rows = 1, .width = 4, .vocabulary = 9}), "");
  EXPECT_DEATH(embedding_backward_cpu({.rows = 1, .width = 0, .vocabulary = 9}), "");
  EXPECT_DEATH(embedding_backward_cpu({.rows = 1, .width = 4, .vocabulary = 9}), "");
}

}  // namespace
}  // namespace tessera::kernels
