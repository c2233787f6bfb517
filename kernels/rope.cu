// Rotary positions on the GPU. Bound by memory: an item is a chunk of up to four heads, which share
// the cosines and sines; a thread loads all of it before it computes. A kernel serves both functions:
// in place, source and target are the same memory.
//
// What a chunk is rotated with lies half a head away. Where a head's chunks divide a warp, a lane has
// one of them and gets the other from the lane that has it, and a warp's accesses are whole lines;
// else a thread has both.
#include "flat_items.cuh"
#include "real_chunk.cuh"
#include "stage_math.h"
#include "tessera/kernels/rope.h"

namespace tessera::kernels {
namespace {

constexpr int kHeads = 4;  // of an item

struct RopeTask {
  int64_t rows;
  uint32_t positions;
  uint32_t query_end;    // heads before this one are queries,
  uint32_t rotated_end;  // before this one keys,
  uint32_t heads;        // before this one values; rotated_end where those stay
  uint32_t head_blocks;  // items of a head's chunk: heads / kHeads, rounded up
  uint32_t half_chunks;  // chunks of half a head, rounded up
  int32_t half;          // head_dim / 2
  int64_t row_width;
  float sign;  // of the sine
  const float* cosine;
  const float* sine;
  HeadTensor query;
  HeadTensor key;
  HeadTensor value;
  void* packed;
};

template <class T>
__device__ __forceinline__ const T* source_of(const RopeTask& task, uint32_t head,
                                              uint32_t sequence, uint32_t position) {
  const HeadTensor& tensor = head < task.query_end     ? task.query
                             : head < task.rotated_end ? task.key
                                                       : task.value;
  const uint32_t first = head < task.query_end     ? 0
                         : head < task.rotated_end ? task.query_end
                                                   : task.rotated_end;
  return static_cast<const T*>(tensor.data) + sequence * tensor.sequence_stride +
         position * tensor.position_stride + (head - first) * tensor.head_stride;
}

// The chunk of lane ^ distance.
__device__ __forceinline__ Chunk<Bfloat16> chunk_across(const Chunk<Bfloat16>& chunk, int distance) {
  Chunk<Bfloat16> other;
#pragma unroll
  for (int k = 0; k < kChunk / 2; ++k) {
    other.words[k] = __shfl_xor_sync(0xffffffffu, chunk.words[k], distance);
  }
  return other;
}

// Aligned bf16. head_chunks: chunks of a head, a power of two from 2 to 32; `task.head_blocks` counts
// heads as for the other kernel.
__global__ void __launch_bounds__(kItemThreads, 4) rope_lanes_kernel(const RopeTask task) {
  const uint32_t head_chunks = 2 * task.half_chunks;
  const FlatItems<1> items(task.rows, task.head_blocks * head_chunks);
  const bool active = items.has(0);  // else for the shuffles alone
  const FlatItem item = items[0];
  const uint32_t head_block = item.index / head_chunks;
  const uint32_t chunk = item.index % head_chunks;
  const bool second = chunk >= task.half_chunks;
  const int column = kChunk * static_cast<int>(chunk);
  const uint32_t sequence = static_cast<uint32_t>(item.row) / task.positions;
  const uint32_t position = static_cast<uint32_t>(item.row) % task.positions;
  const int64_t table = int64_t{position} * task.half + column - (second ? task.half : 0);
  const Chunk<float> cosines = load_chunk<true>(task.cosine + table, kChunk);
  const Chunk<float> sines = load_chunk<true>(task.sine + table, kChunk);
  const float sign = second ? task.sign : -task.sign;
  Chunk<Bfloat16> chunks[kHeads] = {};
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const uint32_t head = head_block + i * task.head_blocks;
    if (!active || head >= task.heads) continue;
    chunks[i] = load_chunk<true>(source_of<Bfloat16>(task, head, sequence, position) + column, kChunk);
  }
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const uint32_t head = head_block + i * task.head_blocks;
    const Chunk<Bfloat16> other = chunk_across(chunks[i], static_cast<int>(task.half_chunks));
    if (!active || head >= task.heads) continue;
    if (head < task.rotated_end) {
      float turned[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        turned[k] = number_of(chunks[i], k) * cosines.values[k] +
                    number_of(other, k) * (sign * sines.values[k]);
      }
      chunks[i] = rounded_chunk<Bfloat16>(turned);
    }
    store_chunk<true>(static_cast<Bfloat16*>(task.packed) + item.row * task.row_width +
                          int64_t{head} * 2 * task.half + column,
                      chunks[i], kChunk);
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kItemThreads) rope_kernel(const RopeTask task) {
  const FlatItems<1> items(task.rows, task.head_blocks * task.half_chunks);
  if (!items.has(0)) return;
  const FlatItem item = items[0];
  const uint32_t head_block = item.index / task.half_chunks;
  const int column = kChunk * static_cast<int>(item.index % task.half_chunks);
  const int count = min(kChunk, task.half - column);
  const uint32_t sequence = static_cast<uint32_t>(item.row) / task.positions;
  const uint32_t position = static_cast<uint32_t>(item.row) % task.positions;
  const int64_t table = int64_t{position} * task.half + column;
  const Chunk<float> cosines = load_chunk<kAligned>(task.cosine + table, count);
  const Chunk<float> sines = load_chunk<kAligned>(task.sine + table, count);
  Chunk<T> firsts[kHeads];
  Chunk<T> seconds[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const uint32_t head = head_block + i * task.head_blocks;
    if (head >= task.heads) continue;
    const T* source = source_of<T>(task, head, sequence, position) + column;
    firsts[i] = load_chunk<kAligned>(source, count);
    seconds[i] = load_chunk<kAligned>(source + task.half, count);
  }
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const uint32_t head = head_block + i * task.head_blocks;
    if (head >= task.heads) continue;
    if (head < task.rotated_end) {
      float first[kChunk];
      float second[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        const Pair pair = rotated(number_of(firsts[i], k), number_of(seconds[i], k),
                                  cosines.values[k], task.sign * sines.values[k]);
        first[k] = pair.a;
        second[k] = pair.b;
      }
      firsts[i] = rounded_chunk<T>(first);
      seconds[i] = rounded_chunk<T>(second);
    }
    T* target = static_cast<T*>(task.packed) + item.row * task.row_width +
                int64_t{head} * 2 * task.half + column;
    store_chunk<kAligned>(target, firsts[i], count);
    store_chunk<kAligned>(target + task.half, seconds[i], count);
  }
}

RopeTask task_of(const RopeShape& shape, const float* cosine, const float* sine, bool inverse,
                 bool with_values, void* packed) {
  RopeTask task = {};
  task.rows = shape.rows;
  task.positions = static_cast<uint32_t>(shape.positions);
  task.query_end = static_cast<uint32_t>(shape.heads);
  task.rotated_end = static_cast<uint32_t>(shape.heads + shape.key_heads);
  task.heads = task.rotated_end + static_cast<uint32_t>(with_values ? shape.key_heads : 0);
  task.head_blocks = (task.heads + kHeads - 1) / kHeads;
  task.half = static_cast<int32_t>(shape.head_dim / 2);
  task.half_chunks = static_cast<uint32_t>((task.half + kChunk - 1) / kChunk);
  task.row_width = (shape.heads + 2 * shape.key_heads) * shape.head_dim;
  task.sign = inverse ? -1.0f : 1.0f;
  task.cosine = cosine;
  task.sine = sine;
  task.packed = packed;
  return task;
}

bool is_aligned(const HeadTensor& tensor) {
  return are_aligned(tensor.data) && tensor.sequence_stride % kChunk == 0 &&
         tensor.position_stride % kChunk == 0 && tensor.head_stride % kChunk == 0;
}

cudaError_t run(Real type, const RopeTask& task, void* stream_handle) {
  const bool aligned = task.half % kChunk == 0 &&
                       are_aligned(task.cosine, task.sine, task.packed) && is_aligned(task.query) &&
                       is_aligned(task.key) && is_aligned(task.value);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const uint32_t head_chunks = 2 * task.half_chunks;
  const bool divides_warp = head_chunks <= 32 && (head_chunks & (head_chunks - 1)) == 0;
  if (type == Real::kBfloat16 && aligned && divides_warp) {
    const int64_t blocks = item_blocks<1>(task.rows, int64_t{task.head_blocks} * head_chunks);
    return launch(rope_lanes_kernel, blocks, kItemThreads, stream, task);
  }
  const int64_t blocks = item_blocks<1>(task.rows, int64_t{task.head_blocks} * task.half_chunks);
  return with_real(type, [&](auto tag) {
    return with_bool(aligned, [&](auto alignment) {
      return launch(rope_kernel<typename decltype(tag)::Type, decltype(alignment)::kValue>, blocks,
                    kItemThreads, stream, task);
    });
  });
}

}  // namespace

int rope_cuda(const RopeParams& params, void* stream_handle) {
  const RopeShape& shape = params.shape;
  if (!are_rope_sizes(shape)) return cudaErrorInvalidValue;
  if (shape.rows == 0) return cudaSuccess;
  if (params.cosine == nullptr || params.sine == nullptr || params.packed == nullptr) {
    return cudaErrorInvalidValue;
  }
  RopeTask task = task_of(shape, params.cosine, params.sine, params.inverse, false, params.packed);
  task.query = {params.packed, shape.positions * task.row_width, task.row_width, shape.head_dim};
  task.key = task.query;
  task.key.data = static_cast<const uint8_t*>(params.packed) +
                  static_cast<size_t>(shape.heads * shape.head_dim) * bytes_of(shape.type);
  return run(shape.type, task, stream_handle);
}

int rope_pack_gradient_cuda(const RopePackParams& params, void* stream_handle) {
  const RopeShape& shape = params.shape;
  if (!are_rope_sizes(shape) || shape.rows % shape.positions != 0) return cudaErrorInvalidValue;
  if (shape.rows == 0) return cudaSuccess;
  if (params.cosine == nullptr || params.sine == nullptr || params.packed == nullptr ||
      params.dquery.data == nullptr || params.dkey.data == nullptr ||
      params.dvalue.data == nullptr) {
    return cudaErrorInvalidValue;
  }
  RopeTask task = task_of(shape, params.cosine, params.sine, true, true, params.packed);
  task.query = params.dquery;
  task.key = params.dkey;
  task.value = params.dvalue;
  return run(shape.type, task, stream_handle);
}

}  // namespace tessera::kernels
