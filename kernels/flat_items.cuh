// Elementwise kernels walk over items: equal pieces of work, `per_row` to a row, numbered row by
// row. Each block has a run of them, so that every thread has work whatever the width is.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch.cuh"

namespace tessera::kernels {

constexpr int kItemThreads = 256;

struct FlatItem {
  int64_t row;
  uint32_t index;  // within the row
};

// Items of a grid of blocks with kItemThreads * kItems items each. One wide division per thread;
// the others are of 32 bits.
template <int kItems>
class FlatItems {
 public:
  __device__ __forceinline__ FlatItems(int64_t rows, uint32_t per_row)
      : per_row_(per_row),
        first_(static_cast<uint64_t>(blockIdx.x) * (kItemThreads * kItems)),
        count_(static_cast<uint64_t>(rows) * per_row),
        first_row_(static_cast<int64_t>(first_ / per_row)),
        offset_(static_cast<uint32_t>(first_ % per_row)) {}

  __device__ __forceinline__ bool has(int i) const {
    return first_ + threadIdx.x + i * kItemThreads < count_;
  }
  __device__ __forceinline__ FlatItem operator[](int i) const {
    const uint32_t local = offset_ + threadIdx.x + i * kItemThreads;
    return {first_row_ + local / per_row_, local % per_row_};
  }

 private:
  uint32_t per_row_;
  uint64_t first_;
  uint64_t count_;
  int64_t first_row_;
  uint32_t offset_;
};

// Blocks for `rows` rows; `per_row` is at most 2^31.
template <int kItems>
int64_t item_blocks(int64_t rows, int64_t per_row) {
  constexpr int64_t kPerBlock = int64_t{kItemThreads} * kItems;
  if (rows > kMaximumGrid) return kMaximumGrid + 1;  // refused by launch()
  return (rows * per_row + kPerBlock - 1) / kPerBlock;
}

}  // namespace tessera::kernels
