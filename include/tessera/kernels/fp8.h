// Tensors in 8-bit floats for matrix products, with one power of two a tensor (Micikevicius et al.
// 2022, "FP8 formats for deep learning"): e4m3 for activations and weights, e5m2 for gradients.
//
//   magnitude = max |x|
//   scale = 2^e, e the largest whole number with magnitude * 2^e <= the format's largest number,
//           within -126 .. 126; 1 where the magnitude is 0 or not finite
//   code = x * scale, to nearest even, at most the format's largest number; not finite: NaN
//
// No state: a validator needs nothing but the tensor. A power of two moves no bits, so only the
// format rounds. CPU and CUDA give the same bytes. Rules: real.h.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

enum class Fp8Format : uint8_t { kE4m3, kE5m2 };

inline constexpr uint8_t kFp8Nan = 0x7f;

constexpr float largest_fp8(Fp8Format format) {
  return format == Fp8Format::kE4m3 ? 448.0f : 57344.0f;
}

// What a code stands for, without the tensor's scale.
float float_of_fp8(uint8_t code, Fp8Format format);

// Writes the bits of max |x| as fp32; a NaN counts as infinity.
struct Fp8MagnitudeParams {
  Real type = Real::kBfloat16;
  int64_t count = 0;
  const void* x = nullptr;        // [count]
  uint32_t* magnitude = nullptr;  // [1]
};

// Rows and width are multiples of 16, as matrix products of this type want them.
struct Fp8QuantiseParams {
  Real type = Real::kBfloat16;
  Fp8Format format = Fp8Format::kE4m3;
  int64_t rows = 0;
  int64_t width = 0;
  const void* x = nullptr;              // [rows, width], at a multiple of 16 bytes
  const uint32_t* magnitude = nullptr;  // [1]
  uint8_t* codes = nullptr;             // [rows, width], or null: not wanted
  uint8_t* transposed = nullptr;        // [width, rows], or null: not wanted
  float* inverse_scale = nullptr;       // [1]: 1 / scale, exactly
};

void fp8_magnitude_cpu(const Fp8MagnitudeParams& params);
void fp8_quantise_cpu(const Fp8QuantiseParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int fp8_magnitude_cuda(const Fp8MagnitudeParams& params, void* stream_handle);
int fp8_quantise_cuda(const Fp8QuantiseParams& params, void* stream_handle);

}  // namespace tessera::kernels
