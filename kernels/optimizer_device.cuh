// What the optimizers' CUDA kernels share: alignment, and writing compute weights.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tessera/kernels/optimizer.h"
#include "tessera/kernels/real.h"

namespace tessera::kernels {

constexpr int kOptimizerThreads = 256;

inline bool is_quad_aligned(const float* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(float)) == 0;
}
inline bool is_quad_aligned(const uint16_t* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(uint16_t)) == 0;
}

inline bool is_somewhere(const GradientPlaces& gradient) {
  return gradient.flat != nullptr || gradient.pieces != nullptr;
}

// Whether quads at multiples of four of the flat vector lie at multiples of 16 bytes in an array
// whose first value is number `offset` of it.
__device__ __forceinline__ bool is_aligned_like(const float* array, int64_t offset) {
  const uint64_t place = reinterpret_cast<uint64_t>(array) / sizeof(float);
  return (place - static_cast<uint64_t>(offset)) % 4 == 0;
}

// The next compute weights, in either type or none.
struct WeightTargets {
  float* as_float;
  uint16_t* as_bfloat16;
};

inline bool is_quad_aligned(const WeightTargets& targets) {
  return is_quad_aligned(targets.as_float) && is_quad_aligned(targets.as_bfloat16);
}

// The part of [begin, end) that lies in whole quads at multiples of four; what is before and after
// it goes one by one.
struct QuadParts {
  int64_t begin, first_quad, end_quads, end;
};

__device__ __forceinline__ QuadParts quad_parts(int64_t begin, int64_t end, bool aligned) {
  const int64_t first_quad = aligned ? min((begin + 3) / 4 * 4, end) : end;
  return {begin, first_quad, max(first_quad, end / 4 * 4), end};
}

// Four numbers rounded to bfloat16, the first in the lowest bits.
__device__ __forceinline__ uint2 bfloat16_quad(const float4& value) {
  const uint32_t low = bfloat16_of_float(value.x) | uint32_t{bfloat16_of_float(value.y)} << 16;
  const uint32_t high = bfloat16_of_float(value.z) | uint32_t{bfloat16_of_float(value.w)} << 16;
  return make_uint2(low, high);
}

__device__ __forceinline__ void store_weight(const WeightTargets& targets, int64_t at,
                                             float value) {
  if (targets.as_float != nullptr) targets.as_float[at] = value;
  if (targets.as_bfloat16 != nullptr) targets.as_bfloat16[at] = bfloat16_of_float(value);
}

__device__ __forceinline__ void store_weights(const WeightTargets& targets, int64_t at,
                                              const float4& value) {
  if (targets.as_float != nullptr) *reinterpret_cast<float4*>(targets.as_float + at) = value;
  if (targets.as_bfloat16 != nullptr) {
    *reinterpret_cast<uint2*>(targets.as_bfloat16 + at) = bfloat16_quad(value);
  }
}

}  // namespace tessera::kernels
