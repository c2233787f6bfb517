// The embedding kernels run on either side with the same numbers.
#pragma once

#include <numeric>

#include "kernels/real_fixture.h"
#include "tessera/kernels/embedding.h"

namespace tessera::kernels {

struct EmbeddingCase {
  Real type = Real::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t vocabulary = 0;
  bool normalise = false;
  bool accumulate = false;
  size_t offset = 0;
};

struct EmbeddingNumbers {
  std::vector<float> table, dy, before;
  std::vector<int32_t> ids;
};

// Every other token is one of the first two ids, as frequent words are.
inline EmbeddingNumbers embedding_numbers(const EmbeddingCase& c, uint64_t seed) {
  EmbeddingNumbers numbers;
  numbers.table = random_reals(c.type, c.vocabulary, c.width, seed);
  numbers.dy = random_reals(c.type, c.rows, c.width, seed + 1);
  numbers.before = random_rows(c.vocabulary, c.width, seed + 2);
  Prng prng(seed);
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto vocabulary = static_cast<uint64_t>(c.vocabulary);
    const uint64_t bound = row % 2 == 0 ? std::min<uint64_t>(2, vocabulary) : vocabulary;
    numbers.ids.push_back(static_cast<int32_t>(prng.below(bound)));
  }
  return numbers;
}

// Stable: the rows of an id stay in order.
inline std::vector<int32_t> sorted_order(const std::vector<int32_t>& ids) {
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return ids[a] < ids[b]; });
  return order;
}

struct EmbeddingForward {
  std::vector<float> y, rstd;
};

template <class Bytes, class Launch>
EmbeddingForward embedding_forward(const EmbeddingCase& c, const EmbeddingNumbers& numbers,
                                   Launch launch) {
  Reals<Bytes> table(c.type, numbers.table, c.offset);
  Array<Bytes, int32_t> ids(numbers.ids);
  Reals<Bytes> y(c.type, static_cast<size_t>(c.rows * c.width), c.offset);
  Array<Bytes, float> rstd(c.normalise ? static_cast<size_t>(c.rows) : 0);
  EmbeddingForwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.vocabulary = c.vocabulary;
  params.normalise = c.normalise;
  params.table = table.data();
  params.ids = ids.data();
  params.y = y.data();
  params.rstd = rstd.data_or_null();
  launch(params);
  return {y.values(), rstd.values()};
}

template <class Bytes, class Launch>
std::vector<float> embedding_backward(const EmbeddingCase& c, const EmbeddingNumbers& numbers,
                                      Launch launch) {
  const std::vector<int32_t> positions = sorted_order(numbers.ids);
  std::vector<int32_t> sorted;
  for (const int32_t position : positions) sorted.push_back(numbers.ids[position]);
  Reals<Bytes> table(c.type, numbers.table, c.offset);
  Reals<Bytes> dy(c.type, numbers.dy, c.offset);
  Array<Bytes, int32_t> sorted_ids(sorted);
  Array<Bytes, int32_t> order(positions);
  Array<Bytes, float> gradient(numbers.before);
  Array<Bytes, float> partials(static_cast<size_t>(embedding_partial_rows(c.rows) * c.width));
  EmbeddingBackwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.vocabulary = c.vocabulary;
  params.normalise = c.normalise;
  params.table = c.normalise ? table.data() : nullptr;
  params.sorted_ids = sorted_ids.data();
  params.order = order.data();
  params.dy = dy.data();
  params.accumulate = c.accumulate;
  params.table_gradient = gradient.data();
  params.partials = partials.data();
  launch(params);
  return gradient.values();
}

// What an id's gradient is made of, for each row of the table: the largest of its columns' sums of
// magnitudes, as the normalisation passes them on.
inline std::vector<double> table_scales(const EmbeddingCase& c, const EmbeddingNumbers& numbers) {
  std::vector<double> sums(static_cast<size_t>(c.vocabulary * c.width));
  for (int64_t i = 0; i < c.rows * c.width; ++i) {
    const int32_t id = numbers.ids[i / c.width];
    if (id < 0 || id >= c.vocabulary || !std::isfinite(numbers.dy[i])) continue;
    sums[id * c.width + i % c.width] += std::abs(numbers.dy[i]);
  }
  std::vector<double> scales(static_cast<size_t>(c.vocabulary));
  for (int64_t id = 0; id < c.vocabulary; ++id) {
    double squares = 0.0;
    double peak = 0.0;
    double widest = 0.0;
    for (int64_t i = id * c.width; i < (id + 1) * c.width; ++i) {
      squares += double{numbers.table[i]} * numbers.table[i];
      peak = std::max(peak, sums[i]);
      widest = std::max(widest, std::abs(double{numbers.table[i]}));
    }
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(c.width) + 1e-5);
    widest *= rstd;
    scales[id] = c.normalise ? rstd * peak * (1.0 + widest * widest) : peak;
  }
  return scales;
}

}  // namespace tessera::kernels
