#include "tessera/core/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tessera/base/prng.h"

namespace tessera::core {
namespace {

// Values of published tables.
TEST(Student, TailsAndQuantilesAreThoseOfTheTables) {
  EXPECT_NEAR(student_upper_tail(0, 7), 0.5, 1e-12);
  EXPECT_NEAR(student_upper_tail(1, 1), 0.25, 1e-12);
  EXPECT_NEAR(student_upper_tail(2.228, 10), 0.025, 1e-5);
  EXPECT_NEAR(student_upper_tail(-2.228, 10), 0.975, 1e-5);
  EXPECT_NEAR(student_upper_tail(1.959964, 1e9), 0.025, 1e-8);
  EXPECT_NEAR(student_upper_tail(6, 1e9), 9.8659e-10, 1e-13);
  EXPECT_NEAR(student_quantile(0.025, 10), 2.228139, 1e-5);
  EXPECT_NEAR(student_quantile(0.025, 1), 12.7062, 1e-3);
  EXPECT_NEAR(student_quantile(0.975, 10), -2.228139, 1e-5);
  EXPECT_EQ(student_upper_tail(INFINITY, 3), 0);
  EXPECT_EQ(student_upper_tail(NAN, 3), 1);
}

TEST(Discoveries, AreThoseOfBenjaminiAndHochberg) {
  // The example of their paper (1995, section 4.1): four discoveries at 5 %.
  const std::vector<double> p = {0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
                                 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000};
  const std::vector<bool> found = discoveries(p, 0.05);
  for (size_t i = 0; i < p.size(); ++i) EXPECT_EQ(found[i], i < 4) << i;
  EXPECT_EQ(discoveries({}, 0.05), std::vector<bool>());
  EXPECT_EQ(discoveries({0.5, 0.01}, 0.05), (std::vector<bool>{false, true}));
  // A later one under its limit takes the earlier ones along.
  EXPECT_EQ(discoveries({0.04, 0.05}, 0.05), (std::vector<bool>{true, true}));
}

TEST(Median, OfOddAndEvenNumbers) {
  std::vector<double> none;
  std::vector<double> odd = {3, 1, 2};
  std::vector<double> even = {4, 1, 3, 2};
  EXPECT_EQ(median_of(none), 0);
  EXPECT_EQ(median_of(odd), 2);
  EXPECT_EQ(median_of(even), 2.5);
}

TEST(SymmetricMatrix, KeepsItsValuesWhenItGrowsAndInverts) {
  Prng prng(3);
  SymmetricMatrix matrix;
  for (size_t n = 1; n <= 20; ++n) {
    matrix.resize(n);
    for (size_t j = 0; j < n; ++j) {
      EXPECT_EQ(matrix.at(n - 1, j), 0);
      matrix.at(n - 1, j) = matrix.at(j, n - 1) = prng.uniform() - 0.5;
    }
    matrix.at(n - 1, n - 1) = 20;
    SymmetricMatrix inverse;
    ASSERT_TRUE(invert(matrix, &inverse));
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        double sum = 0;
        for (size_t k = 0; k < n; ++k) sum += matrix.at(i, k) * inverse.at(k, j);
        EXPECT_NEAR(sum, i == j ? 1 : 0, 1e-12);
      }
    }
  }
  matrix.at(0, 0) = -1;
  SymmetricMatrix inverse;
  EXPECT_FALSE(invert(matrix, &inverse));
}

}  // namespace
}  // namespace tessera::core
