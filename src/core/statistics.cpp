#include "tessera/core/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/base/status.h"

namespace tessera::core {
namespace {

constexpr double kTiny = 1e-300;
constexpr int kFractionSteps = 400;
constexpr double kNormalDegrees = 1e7;  // from here on Student's distribution is the normal one

// The continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8, by Lentz's method).
double beta_fraction(double x, double a, double b) {
  double c = 1;
  double d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::abs(d) < kTiny ? kTiny : d);
  double value = d;
  for (int m = 1; m <= kFractionSteps; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 + even * d;
    c = 1 + even / c;
    d = 1 / (std::abs(d) < kTiny ? kTiny : d);
    if (std::abs(c) < kTiny) c = kTiny;
    value *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 + odd * d;
    c = 1 + odd / c;
    d = 1 / (std::abs(d) < kTiny ? kTiny : d);
    if (std::abs(c) < kTiny) c = kTiny;
    const double factor = d * c;
    value *= factor;
    if (std::abs(factor - 1) < 1e-14) break;
  }
  return value;
}

// I_x(a, b), the regularised incomplete beta function.
double incomplete_beta(double x, double a, double b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(x, a, b) / a;
  return 1 - front * beta_fraction(1 - x, b, a) / b;
}

}  // namespace

double student_upper_tail(double t, double degrees) {
  TESSERA_CHECK(degrees > 0);
  if (std::isnan(t)) return 1;
  if (std::isinf(t)) return t > 0 ? 0 : 1;
  if (degrees > kNormalDegrees) return 0.5 * std::erfc(t / std::sqrt(2.0));
  const double both = incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5);
  return t >= 0 ? both / 2 : 1 - both / 2;
}

double student_quantile(double tail, double degrees) {
  TESSERA_CHECK(tail > 0 && tail < 1);
  double low = -1;
  double high = 1;
  while (student_upper_tail(low, degrees) < tail && low > -1e12) low *= 2;
  while (student_upper_tail(high, degrees) > tail && high < 1e12) high *= 2;
  for (int i = 0; i < 200 && high - low > 1e-12 * std::max(1.0, std::abs(high)); ++i) {
    const double middle = (low + high) / 2;
    (student_upper_tail(middle, degrees) > tail ? low : high) = middle;
  }
  return (low + high) / 2;
}

std::vector<bool> discoveries(const std::vector<double>& p_values, double rate) {
  std::vector<size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p_values[a] < p_values[b]; });
  size_t found = 0;
  for (size_t rank = 1; rank <= order.size(); ++rank) {
    const double limit = rate * static_cast<double>(rank) / static_cast<double>(order.size());
    if (p_values[order[rank - 1]] <= limit) found = rank;
  }
  std::vector<bool> result(p_values.size(), false);
  for (size_t rank = 0; rank < found; ++rank) result[order[rank]] = true;
  return result;
}

double median_of(std::vector<double>& values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

void SymmetricMatrix::resize(size_t size) {
  if (size > stride_) {
    const size_t stride = std::max(size, 2 * stride_);
    std::vector<double> values(stride * stride, 0.0);
    for (size_t i = 0; i < size_; ++i) {
      std::copy_n(values_.begin() + static_cast<std::ptrdiff_t>(i * stride_), size_,
                  values.begin() + static_cast<std::ptrdiff_t>(i * stride));
    }
    values_ = std::move(values);
    stride_ = stride;
  }
  size_ = size;
}

void SymmetricMatrix::clear() { std::fill(values_.begin(), values_.end(), 0.0); }

bool invert(const SymmetricMatrix& matrix, SymmetricMatrix* inverse) {
  const size_t n = matrix.size();
  SymmetricMatrix factor;  // lower triangle: matrix = factor factor'
  factor.resize(n);
  for (size_t j = 0; j < n; ++j) {
    double diagonal = matrix.at(j, j);
    for (size_t k = 0; k < j; ++k) diagonal -= factor.at(j, k) * factor.at(j, k);
    if (!(diagonal > 1e-14 * std::abs(matrix.at(j, j)))) return false;
    const double root = std::sqrt(diagonal);
    factor.at(j, j) = root;
    for (size_t i = j + 1; i < n; ++i) {
      double value = matrix.at(i, j);
      for (size_t k = 0; k < j; ++k) value -= factor.at(i, k) * factor.at(j, k);
      factor.at(i, j) = value / root;
    }
  }
  inverse->resize(n);
  std::vector<double> column(n);
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = 0; i < n; ++i) {
      double value = i == j ? 1.0 : 0.0;
      for (size_t k = j; k < i; ++k) value -= factor.at(i, k) * column[k];
      column[i] = i < j ? 0.0 : value / factor.at(i, i);
    }
    for (size_t i = n; i-- > 0;) {
      double value = column[i];
      for (size_t k = i + 1; k < n; ++k) value -= factor.at(k, i) * inverse->at(k, j);
      inverse->at(i, j) = value / factor.at(i, i);
    }
  }
  return true;
}

}  // namespace tessera::core
