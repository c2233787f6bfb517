// The norm kernels run on either side with the same numbers.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/norm.h"

namespace tessera::kernels {

struct NormCase {
  Real type = Real::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  bool delta = true;  // and, backward, the residual's gradient
  bool weight = true;
  bool in_place = false;  // sum over x; dx over dy or over dresidual
  bool accumulate = false;
  size_t offset = 0;
};

struct NormNumbers {
  std::vector<float> x, delta, weight, dy, dresidual, before;
};

inline NormNumbers norm_numbers(const NormCase& c, uint64_t seed) {
  NormNumbers numbers;
  numbers.x = random_reals(c.type, c.rows, c.width, seed);
  if (c.delta) numbers.delta = random_reals(c.type, c.rows, c.width, seed + 1);
  if (c.weight) numbers.weight = random_reals(c.type, 1, c.width, seed + 2);
  numbers.dy = random_reals(c.type, c.rows, c.width, seed + 3);
  if (c.delta) numbers.dresidual = random_reals(c.type, c.rows, c.width, seed + 4);
  numbers.before = random_rows(1, c.width, seed + 5);
  return numbers;
}

struct NormForward {
  std::vector<float> sum, y, rstd;
};

// `launch` runs the kernel on its params and waits for it.
template <class Bytes, class Launch>
NormForward norm_forward(const NormCase& c, const NormNumbers& numbers, Launch launch) {
  Reals<Bytes> x(c.type, numbers.x, c.offset);
  Reals<Bytes> delta(c.type, numbers.delta, c.offset);
  Reals<Bytes> weight(c.type, numbers.weight, c.offset);
  Reals<Bytes> sum(c.type, numbers.delta.size(), c.offset);
  Reals<Bytes> y(c.type, numbers.x.size(), c.offset);
  Array<Bytes, float> rstd(static_cast<size_t>(c.rows));
  ResidualNormForwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.x = x.data();
  params.delta = delta.data_or_null();
  params.weight = weight.data_or_null();
  params.sum = c.in_place && c.delta ? x.data() : sum.data_or_null();
  params.y = y.data();
  params.rstd = rstd.data();
  launch(params);
  if (!c.delta) return {numbers.x, y.values(), rstd.values()};
  return {c.in_place ? x.values() : sum.values(), y.values(), rstd.values()};
}

struct NormBackward {
  std::vector<float> dx, y, weight_gradient;
};

template <class Bytes, class Launch>
NormBackward norm_backward(const NormCase& c, const NormNumbers& numbers,
                           const NormForward& forward, Launch launch) {
  Reals<Bytes> dy(c.type, numbers.dy, c.offset);
  Reals<Bytes> sum(c.type, forward.sum, c.offset);
  Reals<Bytes> weight(c.type, numbers.weight, c.offset);
  Reals<Bytes> dresidual(c.type, numbers.dresidual, c.offset);
  Reals<Bytes> dx(c.type, numbers.x.size(), c.offset);
  Reals<Bytes> y(c.type, numbers.x.size(), c.offset);
  Array<Bytes, float> rstd(forward.rstd);
  Array<Bytes, float> weight_gradient(numbers.before);
  Array<Bytes, float> partials(static_cast<size_t>(norm_partial_rows(c.rows, c.width) * c.width));
  Reals<Bytes>& target = !c.in_place ? dx : c.delta ? dresidual : dy;
  NormBackwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.dy = dy.data();
  params.sum = sum.data();
  params.rstd = rstd.data();
  params.weight = weight.data_or_null();
  params.dresidual = dresidual.data_or_null();
  params.dx = target.data();
  params.y = c.in_place ? nullptr : y.data();
  params.weight_gradient = c.weight ? weight_gradient.data() : nullptr;
  params.accumulate = c.accumulate;
  params.partials = partials.data();
  launch(params);
  NormBackward result;
  result.dx = target.values();
  if (!c.in_place) result.y = y.values();
  if (c.weight) result.weight_gradient = weight_gradient.values();
  return result;
}

// What bounds are relative to: the largest number that a row of dx is made of.
inline std::vector<double> gradient_scales(const NormCase& c, const NormNumbers& numbers,
                                           const NormForward& forward) {
  std::vector<double> scales = row_peaks(numbers.dresidual, c.width);
  scales.resize(static_cast<size_t>(c.rows));
  for (int64_t row = 0; row < c.rows; ++row) {
    double peak = 0.0;
    double widest = 0.0;  // of n
    for (int64_t i = 0; i < c.width; ++i) {
      const double weight = c.weight ? numbers.weight[i] : 1.0;
      peak = std::max(peak, std::abs(numbers.dy[row * c.width + i] * weight));
      widest =
          std::max(widest, std::abs(double{forward.sum[row * c.width + i]} * forward.rstd[row]));
    }
    if (std::isfinite(peak) && std::isfinite(widest)) {
      scales[row] += forward.rstd[row] * peak * (1.0 + widest * widest);
    }
  }
  return scales;
}

// The sums of magnitudes that a weight's gradient is made of.
inline std::vector<double> weight_gradient_scales(const NormCase& c, const NormNumbers& numbers,
                                                  const NormForward& forward) {
  std::vector<double> scales(static_cast<size_t>(c.width));
  for (int64_t i = 0; i < c.rows * c.width; ++i) {
    const double n = double{forward.sum[i]} * forward.rstd[i / c.width];
    if (std::isfinite(numbers.dy[i] * n)) scales[i % c.width] += std::abs(numbers.dy[i] * n);
  }
  for (int64_t i = 0; i < c.width; ++i) scales[i] += std::abs(numbers.before[i]);
  return scales;
}

}  // namespace tessera::kernels
