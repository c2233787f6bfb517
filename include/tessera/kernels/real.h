// The numbers of the stage kernels: activations and compute weights are fp32 or bf16, arithmetic is
// fp32, gradients of parameters are fp32. C++17: CUDA sources include this.
//
// What holds for every stage kernel (norm.h, rope.h, swiglu.h, cross_entropy.h, embedding.h,
// anchor.h):
//   - Tensors are contiguous unless strides are given, and do not overlap unless a comment says so:
//     "may be" then means the same memory, not a part of it.
//   - x_cpu is the reference, single-threaded; sizes or pointers that break the rules are bugs of
//     the caller: TESSERA_CHECK.
//   - x_cuda takes device pointers and a cudaStream_t, launches in stream order without allocating
//     or waiting (it may be captured in a graph) and returns a cudaError_t: 0 launched, 1
//     (cudaErrorInvalidValue) what the CPU version aborts on. Tensors may start at any element;
//     16-byte aligned tensors with rows of whole 16-byte pieces are fast.
//   - CUDA gives the same bits in every run. It agrees with the CPU within the bounds in
//     docs/numerics.md, not bit by bit.
//   - NaNs and infinities go through as in any fp32 arithmetic; a row never touches another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define TESSERA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TESSERA_HOST_DEVICE inline
#endif

namespace tessera::kernels {

enum class Real : uint8_t { kFloat32, kBfloat16 };

constexpr size_t bytes_of(Real type) { return type == Real::kFloat32 ? 4 : 2; }

// The widest row of the kernels that reduce over rows (norm, embedding, anchor).
inline constexpr int64_t kMaximumRowWidth = 16384;

// ---- bits of numbers

constexpr uint32_t kMagnitudeMask = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kQuietNanBits = 0x7fc00000u;
constexpr uint16_t kBfloat16QuietNan = 0x7fc0u;

TESSERA_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TESSERA_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// To nearest even.
TESSERA_HOST_DEVICE uint16_t bfloat16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & kMagnitudeMask) > kInfinityBits) return kBfloat16QuietNan;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact.
TESSERA_HOST_DEVICE float float_of_bfloat16(uint16_t value) {
  return float_of_bits(static_cast<uint32_t>(value) << 16);
}

// The storage of a bf16 number.
struct Bfloat16 {
  uint16_t bits;
};

TESSERA_HOST_DEVICE float to_float(float value) { return value; }
TESSERA_HOST_DEVICE float to_float(Bfloat16 value) { return float_of_bfloat16(value.bits); }

// `value` rounded to T: float or Bfloat16.
template <class T>
TESSERA_HOST_DEVICE T real_of(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return T{bfloat16_of_float(value)};
  }
}

}  // namespace tessera::kernels
