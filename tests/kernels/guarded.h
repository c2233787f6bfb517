// Host memory whose neighbourhood is watched.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace tessera::kernels {

// An array between guard bytes, which must be intact at the end of the test.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count, size_t misalignment = 0)
      : begin_(kGuard + misalignment),
        size_(count * sizeof(T)),
        bytes_(begin_ + size_ + kGuard, kPattern) {}
  ~Guarded() {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (i >= begin_ && i < begin_ + size_) continue;
      if (bytes_[i] != kPattern) {
        ADD_FAILURE() << "guard byte " << static_cast<int64_t>(i - begin_) << " of " << size_
                      << " was overwritten";
        return;
      }
    }
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(bytes_.data() + begin_); }
  std::vector<T> copy() const {
    std::vector<T> values(size_ / sizeof(T));
    if (size_ != 0) std::memcpy(values.data(), bytes_.data() + begin_, size_);
    return values;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPattern = 0xa5;
  size_t begin_;
  size_t size_;
  std::vector<uint8_t> bytes_;
};

}  // namespace tessera::kernels
