// Rows in blocks (row_shape.h says how): sums over a row, and sums of columns over all rows.
#pragma once

#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "real_chunk.cuh"
#include "row_shape.h"

namespace tessera::kernels {

constexpr int kWarpSize = 32;
constexpr int kMaximumRowWarps = kMaximumRowThreads / kWarpSize;

// Blocks of dimension (32 * warps, groups).
struct RowPlace {
  int width;

  // First column of chunk `i` of this thread, and how many of its numbers the row has.
  __device__ __forceinline__ int column(int i) const {
    return kChunk * static_cast<int>(threadIdx.x + i * blockDim.x);
  }
  __device__ __forceinline__ int count(int i) const { return min(kChunk, width - column(i)); }
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int half = kWarpSize / 2; half > 0; half /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, half);
  }
  return value;
}

// Sums over the row of each group. Every thread of the block takes part in every round, rounds
// counted from 0. Two sets of slots: a round's slots are free again once all threads have come to
// the next round's barrier, so that one barrier per round is enough.
class RowSum {
 public:
  __device__ __forceinline__ float operator()(float value, int round) {
    value = warp_sum(value);
    const int warps = blockDim.x / kWarpSize;
    if (warps == 1) return value;
    __shared__ float slots[2][kMaximumRowWarps];
    float* row = slots[round & 1] + threadIdx.y * warps;
    if (threadIdx.x % kWarpSize == 0) row[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    float sum = row[0];
    for (int warp = 1; warp < warps; ++warp) sum += row[warp];
    return sum;
  }
};

// Sums that all groups of a block but the first hold: (groups - 1) * 32 * warps * chunks * kChunk,
// largest at the largest width that two groups have.
constexpr int kMaximumSharedSums = 2048;
static_assert(row_shape(256).groups == 8 && row_shape(512).groups == 4 &&
              row_shape(2048).groups == 2 && row_shape(2049).groups == 1);

// Writes the block's sums of columns, those of its groups added in order, to its row of `partials`.
template <int kChunks, bool kAligned>
__device__ __forceinline__ void write_partials(float (&sums)[kChunks][kChunk], RowPlace place,
                                               float* partials) {
  __shared__ float shared[kChunks <= 2 ? kMaximumSharedSums : 1];
  const int threads = blockDim.x;
  const int groups = blockDim.y;
  if (groups > 1) {
    __syncthreads();
    if (threadIdx.y > 0) {
#pragma unroll
      for (int k = 0; k < kChunks * kChunk; ++k) {
        shared[((threadIdx.y - 1) * kChunks * kChunk + k) * threads + threadIdx.x] =
            sums[k / kChunk][k % kChunk];
      }
    }
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int group = 1; group < groups; ++group) {
#pragma unroll
      for (int k = 0; k < kChunks * kChunk; ++k) {
        sums[k / kChunk][k % kChunk] +=
            shared[((group - 1) * kChunks * kChunk + k) * threads + threadIdx.x];
      }
    }
  }
  float* row = partials + int64_t{blockIdx.x} * place.width;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Chunk<float> chunk = rounded_chunk<float>(sums[i]);
    store_chunk<kAligned>(row + place.column(i), chunk, place.count(i));
  }
}

// Registers: two blocks of 512 threads on a multiprocessor where 64 registers hold a thread's share
// of a row, else one.
template <class T, int kChunks>
constexpr int minimum_row_blocks() {
  return sizeof(T) == 2 && kChunks <= 2 ? 2 : 1;
}

// ---- host

template <class Function>
cudaError_t with_chunks(int chunks, Function function) {
  if (chunks == 1) return function(IntegerTag<1>{});
  if (chunks == 2) return function(IntegerTag<2>{});
  return function(IntegerTag<4>{});
}

inline dim3 row_threads(const RowShape& shape) {
  return dim3(static_cast<unsigned>(kWarpSize * shape.warps), static_cast<unsigned>(shape.groups));
}

// Blocks of a kernel that takes each row once.
inline int64_t row_blocks(int64_t rows, const RowShape& shape) {
  return (rows + shape.groups - 1) / shape.groups;
}

inline bool are_row_sizes(int64_t rows, int64_t width) {
  return rows >= 0 && width >= 1 && width <= kMaximumRowWidth;
}

// output[column] = (or +=) the sum of `rows` rows of partials, in a fixed order. (column_sum.cu)
cudaError_t sum_columns(const float* partials, int64_t rows, int64_t width, bool accumulate,
                        float* output, cudaStream_t stream);

}  // namespace tessera::kernels
