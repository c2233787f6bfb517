// The statistics that flags and figures rest on. Pure functions.
#pragma once

#include <cstddef>
#include <vector>

namespace tessera::core {

// P(T > t) of Student's distribution with `degrees` > 0 degrees of freedom (may be infinite: then the normal one).
double student_upper_tail(double t, double degrees);
// The t with student_upper_tail(t, degrees) = `tail`, 0 < tail < 1.
double student_quantile(double tail, double degrees);

// Benjamini and Hochberg (1995): which of these p-values are discoveries when at most a share `rate` of all discoveries may
// be false. In the order given.
std::vector<bool> discoveries(const std::vector<double>& p_values, double rate);

// The middle value; changes the order. 0 if there are none.
double median_of(std::vector<double>& values);

// A symmetric matrix that grows with the number of its rows; new entries are 0.
class SymmetricMatrix {
 public:
  size_t size() const { return size_; }
  void resize(size_t size);
  void clear();
  double& at(size_t i, size_t j) { return values_[i * stride_ + j]; }
  double at(size_t i, size_t j) const { return values_[i * stride_ + j]; }

 private:
  size_t size_ = 0;
  size_t stride_ = 0;
  std::vector<double> values_;
};

// The inverse by Cholesky's factors; false if the matrix is not positive definite to working precision.
bool invert(const SymmetricMatrix& matrix, SymmetricMatrix* inverse);

}  // namespace tessera::core
