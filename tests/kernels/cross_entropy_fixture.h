// The cross-entropy kernels run on either side with the same numbers.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/cross_entropy.h"

namespace tessera::kernels {

struct CrossEntropyCase {
  Real type = Real::kFloat32;
  int64_t rows = 0;
  int64_t vocabulary = 0;
  int64_t columns = 0;
  float scale = 1.0f;
  bool gradient = true;
  size_t offset = 0;
};

struct CrossEntropyNumbers {
  std::vector<float> logits;
  std::vector<int32_t> targets;
};

// Rows of magnitudes 2^-8 to 2^8; targets anywhere in the vocabulary, both ends among them.
inline CrossEntropyNumbers cross_entropy_numbers(const CrossEntropyCase& c, uint64_t seed) {
  CrossEntropyNumbers numbers = {random_reals(c.type, c.rows, c.columns, seed), {}};
  Prng prng(seed);
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto vocabulary = static_cast<uint64_t>(c.vocabulary);
    numbers.targets.push_back(row == 0   ? 0
                              : row == 1 ? static_cast<int32_t>(c.vocabulary - 1)
                                         : static_cast<int32_t>(prng.below(vocabulary)));
  }
  return numbers;
}

struct CrossEntropyResult {
  std::vector<float> logits, losses;
};

template <class Bytes, class Launch>
CrossEntropyResult cross_entropy(const CrossEntropyCase& c, const CrossEntropyNumbers& numbers,
                                 Launch launch) {
  Reals<Bytes> logits(c.type, numbers.logits, c.offset);
  Array<Bytes, int32_t> targets(numbers.targets);
  Array<Bytes, float> losses(static_cast<size_t>(c.rows));
  CrossEntropyParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.vocabulary = c.vocabulary;
  params.columns = c.columns;
  params.scale = c.scale;
  params.gradient = c.gradient;
  params.logits = logits.data();
  params.targets = targets.data();
  params.losses = losses.data();
  launch(params);
  return {logits.values(), losses.values()};
}

// What a loss is the difference of: the largest logit of the row's vocabulary, and the logarithm.
inline double loss_scale(const CrossEntropyCase& c, const CrossEntropyNumbers& numbers,
                         size_t row) {
  double scale = 32.0;
  for (int64_t i = 0; i < c.vocabulary; ++i) {
    const double logit = numbers.logits[row * static_cast<size_t>(c.columns) + i];
    if (std::isfinite(logit)) scale = std::max(scale, std::abs(logit));
  }
  return scale;
}

}  // namespace tessera::kernels
