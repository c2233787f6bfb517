// Cross-entropy on the GPU. Bound by memory: a block per row reads it once for the running maximum
// and sum together, and once more, commonly from the L2 cache, to write the gradient.
#include <math_constants.h>

#include "launch.cuh"
#include "real_chunk.cuh"
#include "tessera/kernels/cross_entropy.h"

namespace tessera::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kAhead = 4;  // chunks a thread has in flight

template <class T>
__device__ __forceinline__ float exponential(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return expf(value);
  } else {
    return __expf(value);
  }
}

// sum = the sum of exp(v - peak); v itself, 0 for -infinity and NaN for NaN, while there was no
// number above -infinity.
struct Running {
  float peak;
  float sum;
};

__device__ __forceinline__ float shift_of(float peak) {
  return peak == -CUDART_INF_F ? 0.0f : peak;
}

template <class T>
__device__ __forceinline__ Running merged(const Running& a, const Running& b) {
  const float peak = fmaxf(a.peak, b.peak);
  const float shift = shift_of(peak);
  return {peak, a.sum * exponential<T>(a.peak - shift) + b.sum * exponential<T>(b.peak - shift)};
}

template <class T>
__device__ __forceinline__ void add_chunk(const Chunk<T>& chunk, int count, Running& running) {
  float values[kChunk];
  float peak = running.peak;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    values[k] = k < count ? number_of(chunk, k) : -CUDART_INF_F;
    peak = fmaxf(peak, values[k]);
  }
  const float shift = shift_of(peak);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) sum += exponential<T>(values[k] - shift);
  if (peak > running.peak) running.sum *= exponential<T>(running.peak - shift);
  running.sum += sum;
  running.peak = peak;
}

// The row's, in every thread.
template <class T>
__device__ __forceinline__ Running block_merged(Running running) {
  __shared__ Running slots[kWarps];
#pragma unroll
  for (int half = 16; half > 0; half /= 2) {
    const Running other = {__shfl_xor_sync(0xffffffffu, running.peak, half),
                           __shfl_xor_sync(0xffffffffu, running.sum, half)};
    running = merged<T>(running, other);
  }
  // Two lanes may have rounded differently; the first one's counts.
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = running;
  __syncthreads();
  running = slots[0];
  for (int warp = 1; warp < kWarps; ++warp) running = merged<T>(running, slots[warp]);
  return running;
}

// Calls function(column, chunk) for the thread's chunks of the columns below `end`; a few chunks
// are loaded before the first of them is used.
template <class T, bool kAligned, class Function>
__device__ __forceinline__ void for_chunks(const T* row, int end, int columns, Function function) {
  for (int start = kChunk * static_cast<int>(threadIdx.x); start < end;
       start += kAhead * kThreads * kChunk) {
    Chunk<T> chunks[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int column = start + i * kThreads * kChunk;
      chunks[i] = load_chunk<kAligned>(row + column, min(kChunk, columns - column));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int column = start + i * kThreads * kChunk;
      if (column < end) function(column, chunks[i]);
    }
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyParams params) {
  const int vocabulary = static_cast<int>(params.vocabulary);
  const int columns = static_cast<int>(params.columns);
  T* row = static_cast<T*>(params.logits) + int64_t{blockIdx.x} * columns;
  const int target = params.targets[blockIdx.x];
  const bool valid = target >= 0 && target < vocabulary;
  Running total = {0.0f, 1.0f};
  float inverse = 0.0f;
  if (valid) {
    const float logit = to_float(row[target]);  // before any thread writes to the row
    Running running = {-CUDART_INF_F, 0.0f};
    for_chunks<T, kAligned>(row, vocabulary, columns, [&](int column, const Chunk<T>& chunk) {
      add_chunk<T>(chunk, vocabulary - column, running);
    });
    total = block_merged<T>(running);
    inverse = params.scale / total.sum;
    if (threadIdx.x == 0) params.losses[blockIdx.x] = logf(total.sum) + (total.peak - logit);
  } else if (threadIdx.x == 0) {
    params.losses[blockIdx.x] = CUDART_NAN_F;
  }
  if (!params.gradient) return;
  const float shift = shift_of(total.peak);
  for_chunks<T, kAligned>(row, columns, columns, [&](int column, const Chunk<T>& chunk) {
    float gradient[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float share = exponential<T>(number_of(chunk, k) - shift) * inverse;
      const bool counts = valid && column + k < vocabulary;
      gradient[k] = !counts ? 0.0f : column + k == target ? share - params.scale : share;
    }
    store_chunk<kAligned>(row + column, rounded_chunk<T>(gradient), min(kChunk, columns - column));
  });
}

}  // namespace

int cross_entropy_cuda(const CrossEntropyParams& params, void* stream_handle) {
  if (!are_cross_entropy_sizes(params)) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  if (params.logits == nullptr || params.targets == nullptr || params.losses == nullptr) {
    return cudaErrorInvalidValue;
  }
  const bool aligned = params.columns % kChunk == 0 && are_aligned(params.logits);
  return with_real(params.type, [&](auto type) {
    return with_bool(aligned, [&](auto alignment) {
      return launch(
          cross_entropy_kernel<typename decltype(type)::Type, decltype(alignment)::kValue>,
          params.rows, kThreads, static_cast<cudaStream_t>(stream_handle), params);
    });
  });
}

}  // namespace tessera::kernels
