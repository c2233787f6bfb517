// The token embedding on the GPU. Forward: a group of warps gathers a row. Backward, without
// atomics: the tokens, sorted by id, are cut into pieces of 32, a block each. A run of equal ids
// within a piece goes to its table row at once; the parts of a run that crosses pieces go to the
// workspace, and the block of the piece where the run begins adds them up, in order, in a second
// launch. So no id, however frequent, keeps one block busy with all its tokens.
#include <math_constants.h>

#include "embedding_pieces.h"
#include "row_group.cuh"
#include "stage_math.h"
#include "tessera/kernels/embedding.h"

namespace tessera::kernels {
namespace {

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads)
    embedding_forward_kernel(const EmbeddingForwardParams params) {
  const RowPlace place = {static_cast<int>(params.width)};
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < params.rows;
  const int32_t id = active ? params.ids[row] : 0;
  const bool known = id >= 0 && id < params.vocabulary;
  const T* source = static_cast<const T*>(params.table) + (known ? id : 0) * params.width;
  Chunk<T> values[kChunks];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    values[i] = load_chunk<kAligned>(source + place.column(i), active ? place.count(i) : 0);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      squares += number_of(values[i], k) * number_of(values[i], k);
    }
  }
  float factor = known ? 1.0f : CUDART_NAN_F;
  if (params.normalise) {
    factor *= reciprocal_rms(RowSum()(squares, 0), params.width, params.epsilon);
  }
  if (!active) return;
  if (threadIdx.x == 0 && params.rstd != nullptr) params.rstd[row] = factor;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    float y[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) y[k] = number_of(values[i], k) * factor;
    store_chunk<kAligned>(static_cast<T*>(params.y) + row * params.width + place.column(i),
                          rounded_chunk<T>(y), place.count(i));
  }
}

// Adds the sum of an id's rows of dy to its row of the table's gradient. `round` counts RowSum's
// rounds of the block.
template <class T, int kChunks, bool kAligned>
__device__ __forceinline__ void add_to_table(const EmbeddingBackwardParams& params, RowPlace place,
                                             int32_t id, float (&sums)[kChunks][kChunk],
                                             int& round) {
  if (id < 0 || id >= params.vocabulary) return;
  if (params.normalise) {
    const T* row = static_cast<const T*>(params.table) + id * params.width;
    Chunk<T> values[kChunks];
    float squares = 0.0f;
    float products = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      values[i] = load_chunk<kAligned>(row + place.column(i), place.count(i));
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        squares += number_of(values[i], k) * number_of(values[i], k);
      }
    }
    RowSum row_sum;
    const float rstd = reciprocal_rms(row_sum(squares, round++), params.width, params.epsilon);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) products += sums[i][k] * (number_of(values[i], k) * rstd);
    }
    const float mean = row_sum(products, round++) / static_cast<float>(params.width);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        sums[i][k] = norm_gradient(sums[i][k], number_of(values[i], k) * rstd, mean, rstd);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    float* target = params.table_gradient + id * params.width + place.column(i);
    if (params.accumulate) {
      const Chunk<float> before = load_chunk<kAligned>(target, place.count(i));
#pragma unroll
      for (int k = 0; k < kChunk; ++k) sums[i][k] += before.values[k];
    }
    store_chunk<kAligned>(target, rounded_chunk<float>(sums[i]), place.count(i));
  }
}

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads)
    add_pieces_kernel(const EmbeddingBackwardParams params) {
  constexpr int kAhead = 4;  // rows in flight
  static_assert(kPieceRows % kAhead == 0);
  const RowPlace place = {static_cast<int>(params.width)};
  const int64_t begin = int64_t{blockIdx.x} * kPieceRows;
  const int64_t end = begin + kPieceRows < params.rows ? begin + kPieceRows : params.rows;
  const int32_t* ids = params.sorted_ids;
  const bool from_before = begin > 0 && ids[begin - 1] == ids[begin];
  const bool goes_on = end < params.rows && ids[end] == ids[end - 1];
  bool first_run = true;
  int round = 0;
  float sums[kChunks][kChunk] = {};
  for (int64_t at = begin; at < end; at += kAhead) {
    Chunk<T> rows[kAhead][kChunks];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const bool there = at + j < end;
      const int64_t row = there ? params.order[at + j] : 0;
      const bool known = there && row >= 0 && row < params.rows;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        rows[j][i] = load_chunk<kAligned>(
            static_cast<const T*>(params.dy) + row * params.width + place.column(i),
            known ? place.count(i) : 0);
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t next = at + j + 1;
      if (next > end) break;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sums[i][k] += number_of(rows[j][i], k);
      }
      const int32_t id = ids[next - 1];
      if (next < end && ids[next] == id) continue;
      const bool begun_before = first_run && from_before;
      if (begun_before || (next == end && goes_on)) {
        float* partial =
            params.partials + (2 * int64_t{blockIdx.x} + (begun_before ? 0 : 1)) * params.width;
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
          store_chunk<kAligned>(partial + place.column(i), rounded_chunk<float>(sums[i]),
                                place.count(i));
        }
      } else {
        add_to_table<T, kChunks, kAligned>(params, place, id, sums, round);
      }
      first_run = false;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sums[i][k] = 0.0f;
      }
    }
  }
}

// The runs that begin in the block's piece and go on in the next.
template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaximumRowThreads)
    finish_runs_kernel(const EmbeddingBackwardParams params) {
  constexpr int kAhead = kChunks == 1 ? 8 : 4;  // pieces in flight
  const RowPlace place = {static_cast<int>(params.width)};
  const int32_t* ids = params.sorted_ids;
  const int64_t begin = int64_t{blockIdx.x} * kPieceRows;
  const int64_t end = begin + kPieceRows;
  if (end >= params.rows) return;
  const int32_t id = ids[end - 1];
  if (ids[end] != id || (begin > 0 && ids[begin - 1] == id)) return;
  float sums[kChunks][kChunk];
  const float* first = params.partials + (2 * int64_t{blockIdx.x} + 1) * params.width;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Chunk<float> partial = load_chunk<kAligned>(first + place.column(i), place.count(i));
#pragma unroll
    for (int k = 0; k < kChunk; ++k) sums[i][k] = partial.values[k];
  }
  // The run has a part in a later piece exactly if that piece begins with its id.
  bool more = true;
  for (int64_t piece = int64_t{blockIdx.x} + 1; more; piece += kAhead) {
    Chunk<float> partials[kAhead][kChunks];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t start = (piece + j) * kPieceRows;
      more = start < params.rows && ids[start] == id;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        partials[j][i] =
            load_chunk<kAligned>(params.partials + 2 * (piece + j) * params.width + place.column(i),
                                 more ? place.count(i) : 0);
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sums[i][k] += partials[j][i].values[k];
      }
    }
  }
  int round = 0;
  add_to_table<T, kChunks, kAligned>(params, place, id, sums, round);
}

}  // namespace

int embedding_forward_cuda(const EmbeddingForwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width) || !is_vocabulary(params.vocabulary) ||
      (params.normalise && !(params.epsilon > 0.0f)) ||
      (!params.normalise && params.rstd != nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  if (params.table == nullptr || params.ids == nullptr || params.y == nullptr) {
    return cudaErrorInvalidValue;
  }
  const RowShape shape = row_shape(params.width);
  const bool aligned = params.width % kChunk == 0 && are_aligned(params.table, params.y);
  return with_real(params.type, [&](auto type) {
    return with_chunks(shape.chunks, [&](auto chunks) {
      return with_bool(aligned, [&](auto alignment) {
        return launch(
            embedding_forward_kernel<typename decltype(type)::Type, decltype(chunks)::kValue,
                                     decltype(alignment)::kValue>,
            row_blocks(params.rows, shape), row_threads(shape),
            static_cast<cudaStream_t>(stream_handle), params);
      });
    });
  });
}

int embedding_backward_cuda(const EmbeddingBackwardParams& params, void* stream_handle) {
  if (!are_row_sizes(params.rows, params.width) || params.rows > kMaximumEmbeddingRows ||
      !is_vocabulary(params.vocabulary) ||
      (params.normalise && (!(params.epsilon > 0.0f) || params.table == nullptr))) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  if (params.sorted_ids == nullptr || params.order == nullptr || params.dy == nullptr ||
      params.table_gradient == nullptr || params.partials == nullptr) {
    return cudaErrorInvalidValue;
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const RowShape shape = row_shape(params.width);
  const dim3 threads(static_cast<unsigned>(kWarpSize * shape.warps));  // a row a block
  const int64_t pieces = piece_count(params.rows);
  const bool aligned =
      params.width % kChunk == 0 && are_aligned(params.normalise ? params.table : nullptr,
                                                params.dy, params.table_gradient, params.partials);
  return with_real(params.type, [&](auto type) {
    return with_chunks(shape.chunks, [&](auto chunks) {
      return with_bool(aligned, [&](auto alignment) {
        using Type = typename decltype(type)::Type;
        constexpr int kChunks = decltype(chunks)::kValue;
        constexpr bool kAligned = decltype(alignment)::kValue;
        const cudaError_t error =
            launch(add_pieces_kernel<Type, kChunks, kAligned>, pieces, threads, stream, params);
        if (error != cudaSuccess || pieces == 1) return error;
        return launch(finish_runs_kernel<Type, kChunks, kAligned>, pieces, threads, stream, params);
      });
    });
  });
}

}  // namespace tessera::kernels
