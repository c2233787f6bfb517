// What the tests of the stage kernels share: tensors in host or device memory, and bounds.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/guarded.h"
#include "kernels/random_rows.h"
#include "tessera/kernels/real.h"

namespace tessera::kernels {

constexpr Real kReals[] = {Real::kFloat32, Real::kBfloat16};

inline std::string name_of(Real type) { return type == Real::kFloat32 ? "fp32" : "bf16"; }

// The host's counterpart of DeviceBytes.
class HostBytes {
 public:
  explicit HostBytes(size_t size, size_t misalignment = 0)
      : size_(size), bytes_(size, misalignment) {}
  uint8_t* data() { return bytes_.data(); }
  void write(const void* source) {
    if (size_ != 0) std::memcpy(bytes_.data(), source, size_);
  }
  void read(void* target) {
    if (size_ != 0) std::memcpy(target, bytes_.data(), size_);
  }

 private:
  size_t size_;
  Guarded<uint8_t> bytes_;
};

// Numbers of a plain type. As an output it starts with the guards' pattern in every byte, which no
// kernel leaves there.
template <class Bytes, class T>
class Array {
 public:
  explicit Array(size_t count, size_t offset = 0)
      : count_(count), bytes_(count * sizeof(T), offset * sizeof(T)) {}
  explicit Array(const std::vector<T>& values, size_t offset = 0) : Array(values.size(), offset) {
    bytes_.write(values.data());
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  T* data_or_null() { return count_ == 0 ? nullptr : data(); }
  std::vector<T> values() {
    std::vector<T> result(count_);
    bytes_.read(result.data());
    return result;
  }

 private:
  size_t count_;
  Bytes bytes_;
};

// Numbers of a Real type, `offset` of them off an aligned address.
template <class Bytes>
class Reals {
 public:
  Reals(Real type, size_t count, size_t offset = 0)
      : type_(type), count_(count), bytes_(count * bytes_of(type), offset * bytes_of(type)) {}
  Reals(Real type, const std::vector<float>& values, size_t offset = 0)
      : Reals(type, values.size(), offset) {
    if (type == Real::kFloat32) {
      bytes_.write(values.data());
      return;
    }
    std::vector<Bfloat16> stored(count_);
    for (size_t i = 0; i < count_; ++i) stored[i] = real_of<Bfloat16>(values[i]);
    bytes_.write(stored.data());
  }
  void* data() { return bytes_.data(); }
  void* data_or_null() { return count_ == 0 ? nullptr : data(); }
  std::vector<float> values() {
    std::vector<float> result(count_);
    if (type_ == Real::kFloat32) {
      bytes_.read(result.data());
      return result;
    }
    std::vector<Bfloat16> stored(count_);
    bytes_.read(stored.data());
    for (size_t i = 0; i < count_; ++i) result[i] = to_float(stored[i]);
    return result;
  }

 private:
  Real type_;
  size_t count_;
  Bytes bytes_;
};

// As the type keeps them.
inline std::vector<float> rounded(Real type, std::vector<float> values) {
  if (type == Real::kBfloat16) {
    for (float& value : values) value = to_float(real_of<Bfloat16>(value));
  }
  return values;
}

inline std::vector<float> random_reals(Real type, int64_t rows, int64_t width, uint64_t seed) {
  return rounded(type, random_rows(rows, width, seed));
}

// The error of fp32 sums, taken in another order, of the widest rows here: relative to the sum of
// the magnitudes. (Any order in pieces of at most 2^6 numbers in a line.)
constexpr double kSumError = 0x1p-18;

// How far numbers that agree before they are rounded may be apart after it, by their magnitude:
// a step of the type.
inline double step_of(Real type, double magnitude) {
  return type == Real::kFloat32 ? 0x1p-22 * magnitude + 0x1p-147 : 0x1p-7 * magnitude + 0x1p-132;
}

// |actual - expected| <= slack(i) + a step. Infinities and NaN must be the same.
inline void expect_close(const std::vector<float>& actual, const std::vector<double>& expected,
                         Real type, const std::function<double(size_t)>& slack) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(actual[i])) << "number " << i << ": " << actual[i] << " for NaN";
      continue;
    }
    if (std::isinf(expected[i])) {
      ASSERT_EQ(actual[i], expected[i]) << "number " << i;
      continue;
    }
    const double bound = slack(i) + step_of(type, std::abs(expected[i]));
    ASSERT_LE(std::abs(actual[i] - expected[i]), bound)
        << "number " << i << ": " << actual[i] << " instead of " << expected[i];
  }
}

inline std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

inline void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_TRUE(a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0)
      << "two runs differ";
}

// The largest finite magnitude of each row.
inline std::vector<double> row_peaks(const std::vector<float>& values, int64_t width) {
  std::vector<double> peaks(values.size() / static_cast<size_t>(width));
  for (size_t i = 0; i < values.size(); ++i) {
    const double magnitude = std::abs(double{values[i]});
    double& peak = peaks[i / static_cast<size_t>(width)];
    if (std::isfinite(magnitude)) peak = std::max(peak, magnitude);
  }
  return peaks;
}

}  // namespace tessera::kernels
