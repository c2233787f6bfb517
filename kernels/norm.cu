// RMSNorm on the GPU. Bound by memory: every tensor is read and written once, in 16-byte pieces,
// and a row stays in registers between its sum and its output. The backward pass keeps the weight's
// gradient in registers too: a block walks over many rows, and each thread has the same columns in
// all of them, so that it adds without atomics.
#include "row_group.cuh"
#include "stage_math.h"
#include "tessera/kernels/norm.h"

namespace tessera::kernels {
namespace {

template <class T, bool kAligned>
__device__ __forceinline__ Chunk<T> load_weights(const void* weight, RowPlace place, int i) {
  if (weight == nullptr) {
    constexpr float kOnes[kChunk] = {1, 1, 1, 1, 1, 1, 1, 1};
    return rounded_chunk<T>(kOnes);
  }
  return load_chunk<kAligned>(static_cast<const T*>(weight) + place.column(i), place.count(i));
}

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads, (minimum_row_blocks<T, kChunks>()))
    residual_norm_forward_kernel(const ResidualNormForwardParams params) {
  const RowPlace place = {static_cast<int>(params.width)};
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < params.rows;
  const int64_t begin = row * params.width;
  Chunk<T> values[kChunks];
  Chunk<T> deltas[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int64_t at = begin + place.column(i);
    const int count = active ? place.count(i) : 0;
    values[i] = load_chunk<kAligned>(static_cast<const T*>(params.x) + at, count);
    if (params.delta == nullptr) continue;
    deltas[i] = load_chunk<kAligned>(static_cast<const T*>(params.delta) + at, count);
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (params.delta != nullptr) {
      float sums[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        sums[k] = number_of(values[i], k) + number_of(deltas[i], k);
      }
      values[i] = rounded_chunk<T>(sums);
      store_chunk<kAligned>(static_cast<T*>(params.sum) + begin + place.column(i), values[i],
                            active ? place.count(i) : 0);
    }
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      squares += number_of(values[i], k) * number_of(values[i], k);
    }
  }
  const float rstd = reciprocal_rms(RowSum()(squares, 0), params.width, params.epsilon);
  if (!active) return;
  if (threadIdx.x == 0 && params.rstd != nullptr) params.rstd[row] = rstd;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Chunk<T> weights = load_weights<T, kAligned>(params.weight, place, i);
    float y[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      y[k] = number_of(values[i], k) * rstd * number_of(weights, k);
    }
    store_chunk<kAligned>(static_cast<T*>(params.y) + begin + place.column(i), rounded_chunk<T>(y),
                          place.count(i));
  }
}

template <class T, int kChunks, bool kAligned, bool kWeightGradient>
__global__ void __launch_bounds__(kMaximumRowThreads, (minimum_row_blocks<T, kChunks>()))
    norm_backward_kernel(const NormBackwardParams params) {
  const RowPlace place = {static_cast<int>(params.width)};
  const float inverse_width = 1.0f / static_cast<float>(params.width);
  float weight_sums[kChunks][kChunk] = {};
  RowSum row_sum;
  int round = 0;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < params.rows;
       first += int64_t{gridDim.x} * blockDim.y, ++round) {
    const int64_t row = first + threadIdx.y;
    const bool active = row < params.rows;
    const int64_t begin = row * params.width;
    Chunk<T> dy[kChunks];
    Chunk<T> values[kChunks];
    Chunk<T> residual[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int64_t at = begin + place.column(i);
      const int count = active ? place.count(i) : 0;
      dy[i] = load_chunk<kAligned>(static_cast<const T*>(params.dy) + at, count);
      values[i] = load_chunk<kAligned>(static_cast<const T*>(params.sum) + at, count);
      if (params.dresidual == nullptr) continue;
      residual[i] = load_chunk<kAligned>(static_cast<const T*>(params.dresidual) + at, count);
    }
    const float rstd = active ? params.rstd[row] : 0.0f;
    float products = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Chunk<T> weights = load_weights<T, kAligned>(params.weight, place, i);
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        const float product = number_of(dy[i], k) * (number_of(values[i], k) * rstd);
        if constexpr (kWeightGradient) weight_sums[i][k] += product;
        products += product * number_of(weights, k);
      }
    }
    const float mean = row_sum(products, round) * inverse_width;
    if (!active) continue;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      // Loaded again, from the nearest cache: kept, they would cost too many registers.
      const Chunk<T> weights = load_weights<T, kAligned>(params.weight, place, i);
      float dx[kChunk];
      float y[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        const float weight = number_of(weights, k);
        const float n = number_of(values[i], k) * rstd;
        dx[k] = norm_gradient(number_of(dy[i], k) * weight, n, mean, rstd);
        if (params.dresidual != nullptr) dx[k] += number_of(residual[i], k);
        y[k] = n * weight;
      }
      const int64_t at = begin + place.column(i);
      store_chunk<kAligned>(static_cast<T*>(params.dx) + at, rounded_chunk<T>(dx), place.count(i));
      if (params.y == nullptr) continue;
      store_chunk<kAligned>(static_cast<T*>(params.y) + at, rounded_chunk<T>(y), place.count(i));
    }
  }
  if constexpr (kWeightGradient) {
    write_partials<kChunks, kAligned>(weight_sums, place, params.partials);
  }
}

// A row of up to 128 chunks to a warp, eight rows to a block: it needs no barrier, and a thread has
// more of the row under way at once. (The backward pass needs the registers for its sums.)
RowShape forward_shape(int64_t width) {
  const int64_t row_chunks = (width + kChunk - 1) / kChunk;
  if (row_chunks > 4 * kWarpSize) return row_shape(width);
  const int chunks = row_chunks <= kWarpSize ? 1 : row_chunks <= 2 * kWarpSize ? 2 : 4;
  return {.warps = 1, .chunks = chunks, .groups = 8};
}

}  // namespace

int residual_norm_forward_cuda(const ResidualNormForwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width) || !(params.epsilon > 0.0f) ||
      (params.delta == nullptr) != (params.sum == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  if (params.x == nullptr || params.y == nullptr) return cudaErrorInvalidValue;
  const RowShape shape = forward_shape(params.width);
  const bool aligned = params.width % kChunk == 0 &&
                       are_aligned(params.x, params.delta, params.weight, params.sum, params.y);
  return with_real(params.type, [&](auto type) {
    return with_chunks(shape.chunks, [&](auto chunks) {
      return with_bool(aligned, [&](auto alignment) {
        return launch(
            residual_norm_forward_kernel<typename decltype(type)::Type, decltype(chunks)::kValue,
                                         decltype(alignment)::kValue>,
            row_blocks(params.rows, shape), row_threads(shape),
            static_cast<cudaStream_t>(stream_handle), params);
      });
    });
  });
}

int norm_backward_cuda(const NormBackwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width)) return cudaErrorInvalidValue;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const bool weight_gradient = params.weight_gradient != nullptr;
  const int64_t blocks = column_sum_blocks(params.rows, params.width);
  if (params.rows > 0) {
    if (params.dy == nullptr || params.sum == nullptr || params.rstd == nullptr ||
        params.dx == nullptr || (weight_gradient && params.partials == nullptr)) {
      return cudaErrorInvalidValue;
    }
    const RowShape shape = row_shape(params.width);
    const bool aligned = params.width % kChunk == 0 &&
                         are_aligned(params.dy, params.sum, params.weight, params.dresidual,
                                     params.dx, params.y, params.partials);
    const cudaError_t error = with_real(params.type, [&](auto type) {
      return with_chunks(shape.chunks, [&](auto chunks) {
        return with_bool(aligned, [&](auto alignment) {
          return with_bool(weight_gradient, [&](auto gradient) {
            return launch(
                norm_backward_kernel<typename decltype(type)::Type, decltype(chunks)::kValue,
                                     decltype(alignment)::kValue, decltype(gradient)::kValue>,
                blocks, row_threads(shape), stream, params);
          });
        });
      });
    });
    if (error != cudaSuccess) return error;
  }
  if (!weight_gradient) return cudaSuccess;
  return sum_columns(params.partials, blocks, params.width, params.accumulate,
                     params.weight_gradient, stream);
}

}  // namespace tessera::kernels
