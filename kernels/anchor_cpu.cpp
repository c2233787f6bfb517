// The reference of the anchored boundary's kernels. Sums are in fp64, everything else in fp32.
#include <limits>
#include <vector>

#include "real_access.h"
#include "row_shape.h"
#include "stage_math.h"
#include "tessera/kernels/anchor.h"

namespace tessera::kernels {
namespace {

void check_anchor(const AnchorRows& anchor) {
  TESSERA_CHECK(anchor.data != nullptr);
  TESSERA_CHECK(anchor.ids == nullptr ||
                (anchor.vocabulary >= 1 && anchor.vocabulary < int64_t{1} << 31));
}

float load_anchor(Real type, const AnchorRows& anchor, int64_t row, int64_t width, int64_t column) {
  if (anchor.ids == nullptr) return load_real(type, anchor.data, row * width + column);
  const int64_t id = anchor.ids[row];
  if (id < 0 || id >= anchor.vocabulary) return std::numeric_limits<float>::quiet_NaN();
  return load_real(type, anchor.data, id * width + column);
}

// The row of u, rounded to the type.
void correct(Real type, const AnchorRows& anchor, const void* gain, const void* channel,
             float scale, int64_t row, std::vector<float>& u) {
  const auto width = static_cast<int64_t>(u.size());
  for (int64_t column = 0; column < width; ++column) {
    u[column] = round_real(
        type, anchored(load_anchor(type, anchor, row, width, column), load_real(type, gain, column),
                       load_real(type, channel, row * width + column), scale));
  }
}

}  // namespace

int64_t anchor_partial_rows(int64_t rows, int64_t width) {
  check_row_sizes(rows, width);
  return column_sum_blocks(rows, width);
}

void anchor_forward_cpu(const AnchorForwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rank >= 1 && params.epsilon > 0.0f);
  if (params.rows == 0) return;
  check_anchor(params.anchor);
  TESSERA_CHECK(params.channel != nullptr && params.gain != nullptr && params.y != nullptr &&
                params.rstd != nullptr);
  std::vector<float> u(static_cast<size_t>(params.width));
  for (int64_t row = 0; row < params.rows; ++row) {
    correct(params.type, params.anchor, params.gain, params.channel, channel_scale(params.rank),
            row, u);
    double squares = 0.0;
    for (const float number : u) squares += double{number} * number;
    const float rstd = reciprocal_rms(static_cast<float>(squares), params.width, params.epsilon);
    params.rstd[row] = rstd;
    for (int64_t column = 0; column < params.width; ++column) {
      const int64_t at = row * params.width + column;
      if (params.u != nullptr) store_real(params.type, params.u, at, u[column]);
      store_real(params.type, params.y, at, u[column] * rstd);
    }
  }
}

void anchor_backward_cpu(const AnchorBackwardParams& params) {
  check_row_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rank >= 1 && params.gain_gradient != nullptr);
  if (params.rows > 0) {
    if (params.u == nullptr) check_anchor(params.anchor);
    TESSERA_CHECK(params.channel != nullptr && params.gain != nullptr && params.rstd != nullptr &&
                  params.dy != nullptr && params.du != nullptr && params.dchannel != nullptr);
  }
  const Real type = params.type;
  const float scale = channel_scale(params.rank);
  std::vector<float> u(static_cast<size_t>(params.width));
  std::vector<double> gain_sums(static_cast<size_t>(params.width));
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t begin = row * params.width;
    const float rstd = params.rstd[row];
    if (params.u == nullptr) {
      correct(type, params.anchor, params.gain, params.channel, scale, row, u);
    } else {
      for (int64_t i = 0; i < params.width; ++i) u[i] = load_real(type, params.u, begin + i);
    }
    double products = 0.0;
    for (int64_t i = 0; i < params.width; ++i) {
      products += double{load_real(type, params.dy, begin + i)} * (u[i] * rstd);
    }
    const float mean = static_cast<float>(products / static_cast<double>(params.width));
    for (int64_t i = 0; i < params.width; ++i) {
      const float dy = load_real(type, params.dy, begin + i);
      const float channel = load_real(type, params.channel, begin + i);
      const float du = norm_gradient(dy, u[i] * rstd, mean, rstd);
      store_real(type, params.du, begin + i, du);
      store_real(type, params.dchannel, begin + i, du * scale * load_real(type, params.gain, i));
      gain_sums[i] += double{du} * scale * channel;
    }
  }
  for (int64_t i = 0; i < params.width; ++i) {
    const float before = params.accumulate ? params.gain_gradient[i] : 0.0f;
    params.gain_gradient[i] = before + static_cast<float>(gain_sums[i]);
  }
}

}  // namespace tessera::kernels
