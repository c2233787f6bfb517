// The reference of the embedding kernels. Sums are in fp64, everything else in fp32.
#include <limits>
#include <vector>

#include "embedding_pieces.h"
#include "real_access.h"
#include "stage_math.h"
#include "tessera/kernels/embedding.h"

namespace tessera::kernels {
namespace {

float table_rstd(Real type, const void* table, int32_t id, int64_t width, float epsilon) {
  double squares = 0.0;
  for (int64_t column = 0; column < width; ++column) {
    const float value = load_real(type, table, id * width + column);
    squares += double{value} * value;
  }
  return reciprocal_rms(static_cast<float>(squares), width, epsilon);
}

// Adds the sum of an id's rows of dy to its row of the table's gradient.
void add_to_table(const EmbeddingBackwardParams& params, int32_t id,
                  const std::vector<double>& sums) {
  if (id < 0 || id >= params.vocabulary) return;
  float rstd = 1.0f;
  double mean = 0.0;
  if (params.normalise) {
    rstd = table_rstd(params.type, params.table, id, params.width, params.epsilon);
    for (int64_t column = 0; column < params.width; ++column) {
      mean +=
          sums[column] * (load_real(params.type, params.table, id * params.width + column) * rstd);
    }
    mean /= static_cast<double>(params.width);
  }
  for (int64_t column = 0; column < params.width; ++column) {
    float gradient = static_cast<float>(sums[column]);
    if (params.normalise) {
      const float n = load_real(params.type, params.table, id * params.width + column) * rstd;
      gradient = norm_gradient(gradient, n, static_cast<float>(mean), rstd);
    }
    float& target = params.table_gradient[id * params.width + column];
    target = params.accumulate ? target + gradient : gradient;
  }
}

}  // namespace

int64_t embedding_partial_rows(int64_t rows) {
  TESSERA_CHECK(rows >= 0 && rows <= kMaximumEmbeddingRows);
  return 2 * piece_count(rows);
}

void embedding_forward_cpu(const EmbeddingForwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(is_vocabulary(params.vocabulary));
  TESSERA_CHECK(!params.normalise || params.epsilon > 0.0f);
  TESSERA_CHECK(params.normalise || params.rstd == nullptr);
  TESSERA_CHECK(params.rows == 0 ||
                (params.table != nullptr && params.ids != nullptr && params.y != nullptr));
  for (int64_t row = 0; row < params.rows; ++row) {
    const int32_t id = params.ids[row];
    const bool known = id >= 0 && id < params.vocabulary;
    float factor = known ? 1.0f : std::numeric_limits<float>::quiet_NaN();
    if (known && params.normalise) {
      factor = table_rstd(params.type, params.table, id, params.width, params.epsilon);
    }
    if (params.rstd != nullptr) params.rstd[row] = factor;
    for (int64_t column = 0; column < params.width; ++column) {
      const float value =
          known ? load_real(params.type, params.table, id * params.width + column) : 0.0f;
      store_real(params.type, params.y, row * params.width + column, value * factor);
    }
  }
}

void embedding_backward_cpu(const EmbeddingBackwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rows <= kMaximumEmbeddingRows && is_vocabulary(params.vocabulary));
  TESSERA_CHECK(!params.normalise || (params.epsilon > 0.0f && params.table != nullptr));
  TESSERA_CHECK(params.rows == 0 || (params.sorted_ids != nullptr && params.order != nullptr &&
                                     params.dy != nullptr && params.table_gradient != nullptr));
  std::vector<double> sums(static_cast<size_t>(params.width));
  for (int64_t at = 0; at < params.rows; ++at) {
    const int32_t id = params.sorted_ids[at];
    const int64_t row = params.order[at];
    for (int64_t column = 0; column < params.width && row >= 0 && row < params.rows; ++column) {
      sums[column] += load_real(params.type, params.dy, row * params.width + column);
    }
    if (at + 1 < params.rows && params.sorted_ids[at + 1] == id) continue;
    add_to_table(params, id, sums);
    sums.assign(sums.size(), 0.0);
  }
}

}  // namespace tessera::kernels
