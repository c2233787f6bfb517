// Chunks of eight neighbouring numbers between memory and registers, and the choice of a kernel's
// template arguments on the host.
//
// Loads are ordinary ones, not of the read-only path: many tensors may be their own output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "row_shape.h"
#include "tessera/kernels/real.h"

namespace tessera::kernels {

// As it lies in memory: unpacked only where it is used, to save registers.
template <class T>
struct Chunk {
  T values[kChunk];
};

template <>
struct Chunk<Bfloat16> {
  uint32_t words[kChunk / 2];
};

// Chunks of an aligned tensor are whole and at multiples of 16 bytes. Else `count` numbers are
// there, up to kChunk, at any address; the rest is zero. A count of 0 or less: no access.
template <bool kAligned>
__device__ __forceinline__ Chunk<float> load_chunk(const float* source, int count) {
  Chunk<float> chunk = {};
  if constexpr (kAligned) {
    if (count <= 0) return chunk;
    const float4 low = *reinterpret_cast<const float4*>(source);
    const float4 high = *reinterpret_cast<const float4*>(source + 4);
    chunk = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) chunk.values[i] = source[i];
    }
  }
  return chunk;
}

template <bool kAligned>
__device__ __forceinline__ Chunk<Bfloat16> load_chunk(const Bfloat16* source, int count) {
  Chunk<Bfloat16> chunk = {};
  if constexpr (kAligned) {
    if (count <= 0) return chunk;
    const uint4 words = *reinterpret_cast<const uint4*>(source);
    chunk = {{words.x, words.y, words.z, words.w}};
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) chunk.words[i / 2] |= static_cast<uint32_t>(source[i].bits) << (16 * (i % 2));
    }
  }
  return chunk;
}

template <bool kAligned>
__device__ __forceinline__ void store_chunk(float* target, const Chunk<float>& chunk, int count) {
  if constexpr (kAligned) {
    if (count <= 0) return;
    const float(&v)[kChunk] = chunk.values;
    *reinterpret_cast<float4*>(target) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(target + 4) = make_float4(v[4], v[5], v[6], v[7]);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) target[i] = chunk.values[i];
    }
  }
}

template <bool kAligned>
__device__ __forceinline__ void store_chunk(Bfloat16* target, const Chunk<Bfloat16>& chunk,
                                            int count) {
  if constexpr (kAligned) {
    if (count <= 0) return;
    const uint32_t(&w)[kChunk / 2] = chunk.words;
    *reinterpret_cast<uint4*>(target) = make_uint4(w[0], w[1], w[2], w[3]);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) target[i].bits = static_cast<uint16_t>(chunk.words[i / 2] >> (16 * (i % 2)));
    }
  }
}

__device__ __forceinline__ float number_of(const Chunk<float>& chunk, int i) {
  return chunk.values[i];
}

__device__ __forceinline__ float number_of(const Chunk<Bfloat16>& chunk, int i) {
  const uint32_t word = chunk.words[i / 2];
  return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
}

template <class T>
__device__ __forceinline__ Chunk<T> rounded_chunk(const float (&values)[kChunk]) {
  Chunk<T> chunk;
  if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk.values[i] = values[i];
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], values[i + 1]);
      memcpy(&chunk.words[i / 2], &pair, sizeof(pair));
    }
  }
  return chunk;
}

// ---- host

template <class Type_>
struct TypeTag {
  using Type = Type_;
};
template <int kValue_>
struct IntegerTag {
  static constexpr int kValue = kValue_;
};
template <bool kValue_>
struct BoolTag {
  static constexpr bool kValue = kValue_;
};

template <class Function>
cudaError_t with_real(Real type, Function function) {
  switch (type) {
    case Real::kFloat32:
      return function(TypeTag<float>{});
    case Real::kBfloat16:
      return function(TypeTag<Bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

template <class Function>
cudaError_t with_bool(bool value, Function function) {
  return value ? function(BoolTag<true>{}) : function(BoolTag<false>{});
}

// A null pointer is aligned.
template <class... Pointers>
bool are_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace tessera::kernels
