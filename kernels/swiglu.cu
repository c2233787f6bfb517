// SwiGLU on the GPU. Bound by memory: an item is a chunk of the gate with the same chunk of `up`;
// a thread loads two items before it computes either.
#include "flat_items.cuh"
#include "real_chunk.cuh"
#include "stage_math.h"
#include "swiglu_sigmoid.cuh"
#include "tessera/kernels/swiglu.h"

namespace tessera::kernels {
namespace {

constexpr int kItems = 2;

// Where an item lies.
struct ItemPlace {
  int64_t gate;  // in gate_up and dgate_up
  int64_t h;     // in h and dh
  int count;     // 0: no item
};

template <class Items>
__device__ __forceinline__ ItemPlace place_of(const Items& items, int i, int64_t width) {
  if (!items.has(i)) return {0, 0, 0};
  const FlatItem item = items[i];
  const int64_t column = int64_t{item.index} * kChunk;
  const int64_t left = width - column;
  return {item.row * 2 * width + column, item.row * width + column,
          static_cast<int>(left < kChunk ? left : kChunk)};
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kItemThreads)
    swiglu_forward_kernel(const SwigluForwardParams params, uint32_t per_row) {
  const FlatItems<kItems> items(params.rows, per_row);
  const T* gate_up = static_cast<const T*>(params.gate_up);
  ItemPlace places[kItems];
  Chunk<T> gates[kItems];
  Chunk<T> ups[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    places[i] = place_of(items, i, params.width);
    gates[i] = load_chunk<kAligned>(gate_up + places[i].gate, places[i].count);
    ups[i] = load_chunk<kAligned>(gate_up + places[i].gate + params.width, places[i].count);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    float h[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float gate = number_of(gates[i], k);
      h[k] = swiglu(gate, number_of(ups[i], k), sigmoid<T>(gate));
    }
    store_chunk<kAligned>(static_cast<T*>(params.h) + places[i].h, rounded_chunk<T>(h),
                          places[i].count);
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kItemThreads)
    swiglu_backward_kernel(const SwigluBackwardParams params, uint32_t per_row) {
  const FlatItems<kItems> items(params.rows, per_row);
  const T* gate_up = static_cast<const T*>(params.gate_up);
  T* gradient = static_cast<T*>(params.dgate_up);
  ItemPlace places[kItems];
  Chunk<T> gates[kItems];
  Chunk<T> ups[kItems];
  Chunk<T> dhs[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    places[i] = place_of(items, i, params.width);
    gates[i] = load_chunk<kAligned>(gate_up + places[i].gate, places[i].count);
    ups[i] = load_chunk<kAligned>(gate_up + places[i].gate + params.width, places[i].count);
    dhs[i] = load_chunk<kAligned>(static_cast<const T*>(params.dh) + places[i].h, places[i].count);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const ItemPlace place = places[i];
    float dgate[kChunk];
    float dup[kChunk];
    float h[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float gate = number_of(gates[i], k);
      const float up = number_of(ups[i], k);
      const float dh = number_of(dhs[i], k);
      const float s = sigmoid<T>(gate);
      dgate[k] = swiglu_gate_gradient(dh, gate, up, s);
      dup[k] = swiglu_up_gradient(dh, gate, s);
      h[k] = swiglu(gate, up, s);
    }
    store_chunk<kAligned>(gradient + place.gate, rounded_chunk<T>(dgate), place.count);
    store_chunk<kAligned>(gradient + place.gate + params.width, rounded_chunk<T>(dup), place.count);
    if (params.h == nullptr) continue;
    store_chunk<kAligned>(static_cast<T*>(params.h) + place.h, rounded_chunk<T>(h), place.count);
  }
}

bool are_sizes(int64_t rows, int64_t width) {
  return rows >= 0 && width >= 1 && width <= kMaximumSwigluWidth;
}

int64_t chunks_of(int64_t width) { return (width + kChunk - 1) / kChunk; }

}  // namespace

int swiglu_forward_cuda(const SwigluForwardParams& params, void* stream_handle) {
  if (!are_sizes(params.rows, params.width)) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  if (params.gate_up == nullptr || params.h == nullptr) return cudaErrorInvalidValue;
  const int64_t per_row = chunks_of(params.width);
  const bool aligned = params.width % kChunk == 0 && are_aligned(params.gate_up, params.h);
  return with_real(params.type, [&](auto type) {
    return with_bool(aligned, [&](auto alignment) {
      return launch(
          swiglu_forward_kernel<typename decltype(type)::Type, decltype(alignment)::kValue>,
          item_blocks<kItems>(params.rows, per_row), kItemThreads,
          static_cast<cudaStream_t>(stream_handle), params, static_cast<uint32_t>(per_row));
    });
  });
}

int swiglu_backward_cuda(const SwigluBackwardParams& params, void* stream_handle) {
  if (!are_sizes(params.rows, params.width)) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  if (params.gate_up == nullptr || params.dh == nullptr || params.dgate_up == nullptr) {
    return cudaErrorInvalidValue;
  }
  const int64_t per_row = chunks_of(params.width);
  const bool aligned = params.width % kChunk == 0 &&
                       are_aligned(params.gate_up, params.dh, params.dgate_up, params.h);
  return with_real(params.type, [&](auto type) {
    return with_bool(aligned, [&](auto alignment) {
      return launch(
          swiglu_backward_kernel<typename decltype(type)::Type, decltype(alignment)::kValue>,
          item_blocks<kItems>(params.rows, per_row), kItemThreads,
          static_cast<cudaStream_t>(stream_handle), params, static_cast<uint32_t>(per_row));
    });
  });
}

}  // namespace tessera::kernels
