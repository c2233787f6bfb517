// The receiving side of the anchored boundary on the GPU: the norm kernels' way (norm.cu), with the
// sum made of the anchor's row and the channel.
#include <math_constants.h>

#include "row_group.cuh"
#include "stage_math.h"
#include "tessera/kernels/anchor.h"

namespace tessera::kernels {
namespace {

template <class T, bool kAligned>
__device__ __forceinline__ Chunk<T> load_anchor(const AnchorRows& anchor, int64_t row,
                                                int64_t width, int column, int count) {
  int64_t index = row;
  if (anchor.ids != nullptr && count > 0) {
    index = anchor.ids[row];
    if (index < 0 || index >= anchor.vocabulary) {
      float unknown[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) unknown[k] = CUDART_NAN_F;
      return rounded_chunk<T>(unknown);
    }
  }
  return load_chunk<kAligned>(static_cast<const T*>(anchor.data) + index * width + column, count);
}

// Rounded to the type.
template <class T>
__device__ __forceinline__ Chunk<T> corrected(const Chunk<T>& anchor, const Chunk<T>& gain,
                                              const Chunk<T>& channel, float scale) {
  float u[kChunk];
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    u[k] = anchored(number_of(anchor, k), number_of(gain, k), number_of(channel, k), scale);
  }
  return rounded_chunk<T>(u);
}

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads, (minimum_row_blocks<T, kChunks>()))
    anchor_forward_kernel(const AnchorForwardParams params, float scale) {
  const RowPlace place = {static_cast<int>(params.width)};
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < params.rows;
  const int64_t begin = row * params.width;
  Chunk<T> u[kChunks];
  Chunk<T> channels[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int count = active ? place.count(i) : 0;
    u[i] = load_anchor<T, kAligned>(params.anchor, row, params.width, place.column(i), count);
    channels[i] = load_chunk<kAligned>(
        static_cast<const T*>(params.channel) + begin + place.column(i), count);
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Chunk<T> gain =
        load_chunk<kAligned>(static_cast<const T*>(params.gain) + place.column(i), place.count(i));
    u[i] = corrected<T>(u[i], gain, channels[i], scale);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      squares += number_of(u[i], k) * number_of(u[i], k);
    }
    if (params.u == nullptr) continue;
    store_chunk<kAligned>(static_cast<T*>(params.u) + begin + place.column(i), u[i],
                          active ? place.count(i) : 0);
  }
  const float rstd = reciprocal_rms(RowSum()(squares, 0), params.width, params.epsilon);
  if (!active) return;
  if (threadIdx.x == 0) params.rstd[row] = rstd;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    float y[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) y[k] = number_of(u[i], k) * rstd;
    store_chunk<kAligned>(static_cast<T*>(params.y) + begin + place.column(i), rounded_chunk<T>(y),
                          place.count(i));
  }
}

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads, (minimum_row_blocks<T, kChunks>()))
    anchor_backward_kernel(const AnchorBackwardParams params, float scale) {
  const RowPlace place = {static_cast<int>(params.width)};
  const float inverse_width = 1.0f / static_cast<float>(params.width);
  const T* gains = static_cast<const T*>(params.gain);
  float gain_sums[kChunks][kChunk] = {};
  RowSum row_sum;
  int round = 0;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < params.rows;
       first += int64_t{gridDim.x} * blockDim.y, ++round) {
    const int64_t row = first + threadIdx.y;
    const bool active = row < params.rows;
    const int64_t begin = row * params.width;
    Chunk<T> dy[kChunks];
    Chunk<T> channels[kChunks];
    Chunk<T> u[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int64_t at = begin + place.column(i);
      const int count = active ? place.count(i) : 0;
      dy[i] = load_chunk<kAligned>(static_cast<const T*>(params.dy) + at, count);
      channels[i] = load_chunk<kAligned>(static_cast<const T*>(params.channel) + at, count);
      u[i] = params.u != nullptr ? load_chunk<kAligned>(static_cast<const T*>(params.u) + at, count)
                                 : load_anchor<T, kAligned>(params.anchor, row, params.width,
                                                            place.column(i), count);
    }
    const float rstd = active ? params.rstd[row] : 0.0f;
    float products = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (params.u == nullptr) {
        const Chunk<T> gain = load_chunk<kAligned>(gains + place.column(i), place.count(i));
        u[i] = corrected<T>(u[i], gain, channels[i], scale);
      }
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        products += number_of(dy[i], k) * (number_of(u[i], k) * rstd);
      }
    }
    const float mean = row_sum(products, round) * inverse_width;
    if (!active) continue;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Chunk<T> gain = load_chunk<kAligned>(gains + place.column(i), place.count(i));
      float du[kChunk];
      float dchannel[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        du[k] = norm_gradient(number_of(dy[i], k), number_of(u[i], k) * rstd, mean, rstd);
        const float scaled = du[k] * scale;
        dchannel[k] = scaled * number_of(gain, k);
        gain_sums[i][k] += scaled * number_of(channels[i], k);
      }
      const int64_t at = begin + place.column(i);
      store_chunk<kAligned>(static_cast<T*>(params.du) + at, rounded_chunk<T>(du), place.count(i));
      store_chunk<kAligned>(static_cast<T*>(params.dchannel) + at, rounded_chunk<T>(dchannel),
                            place.count(i));
    }
  }
  write_partials<kChunks, kAligned>(gain_sums, place, params.partials);
}

bool is_valid(const AnchorRows& anchor) {
  return anchor.data != nullptr &&
         (anchor.ids == nullptr ||
          (anchor.vocabulary >= 1 && anchor.vocabulary < int64_t{1} << 31));
}

}  // namespace

int anchor_forward_cuda(const AnchorForwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width) || params.rank < 1 || !(params.epsilon > 0.0f)) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  if (!is_valid(params.anchor) || params.channel == nullptr || params.gain == nullptr ||
      params.y == nullptr || params.rstd == nullptr) {
    return cudaErrorInvalidValue;
  }
  const RowShape shape = row_shape(params.width);
  const bool aligned = params.width % kChunk == 0 && are_aligned(params.anchor.data, params.channel,
                                                                 params.gain, params.u, params.y);
  return with_real(params.type, [&](auto type) {
    return with_chunks(shape.chunks, [&](auto chunks) {
      return with_bool(aligned, [&](auto alignment) {
        return launch(anchor_forward_kernel<typename decltype(type)::Type, decltype(chunks)::kValue,
                                            decltype(alignment)::kValue>,
                      row_blocks(params.rows, shape), row_threads(shape),
                      static_cast<cudaStream_t>(stream_handle), params, channel_scale(params.rank));
      });
    });
  });
}

int anchor_backward_cuda(const AnchorBackwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width) || params.rank < 1 ||
      params.gain_gradient == nullptr) {
    return cudaErrorInvalidValue;
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = column_sum_blocks(params.rows, params.width);
  if (params.rows > 0) {
    if ((params.u == nullptr && !is_valid(params.anchor)) || params.channel == nullptr ||
        params.gain == nullptr || params.rstd == nullptr || params.dy == nullptr ||
        params.du == nullptr || params.dchannel == nullptr || params.partials == nullptr) {
      return cudaErrorInvalidValue;
    }
    const RowShape shape = row_shape(params.width);
    const bool aligned =
        params.width % kChunk == 0 &&
        are_aligned(params.u, params.u == nullptr ? params.anchor.data : nullptr, params.channel,
                    params.gain, params.dy, params.du, params.dchannel, params.partials);
    const cudaError_t error = with_real(params.type, [&](auto type) {
      return with_chunks(shape.chunks, [&](auto chunks) {
        return with_bool(aligned, [&](auto alignment) {
          return launch(
              anchor_backward_kernel<typename decltype(type)::Type, decltype(chunks)::kValue,
                                     decltype(alignment)::kValue>,
              blocks, row_threads(shape), stream, params, channel_scale(params.rank));
        });
      });
    });
    if (error != cudaSuccess) return error;
  }
  return sum_columns(params.partials, blocks, params.width, params.accumulate, params.gain_gradient,
                     stream);
}

}  // namespace tessera::kernels
