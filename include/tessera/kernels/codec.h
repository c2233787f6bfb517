// The wire codecs of the boundary: rows of numbers to bytes and back.
//
// Payload of `rows` rows of `width` numbers, little-endian:
//   fp32        codes: rows * width floats
//   bf16        codes: rows * width bfloat16, rounded to nearest even
//   int8, int4  scales: rows fp16, then codes: rows * row_code_bytes
//               int8: one two's complement byte a number; int4: two's complement nibbles, the even
//               column in the low nibble, each row padded with zero to whole bytes.
//
// Integer codecs, row x with a = max(|x|), q = 127 (int8) or 7 (int4), e the frame's exponent:
//   e     = max(-126, floor(log2(largest a of the frame)) - 15); -126 for a frame of zeros
//   scale = max(fp16(a * 2^-e / q), 2^-14: fp16's smallest normal number); 0 for a row of zeros
//   code  = round(clamp(x * 2^-e / scale, -q, q))
//   value = code * scale * 2^e
// e puts the largest row near the top of fp16's range, so that rows down to 2^-22 (int8) or 2^-26
// (int4) of it have a scale of their own with full precision. Rows below that share the smallest
// scale. No step is under 2^-140.
// Error, with step = scale * 2^e: to nearest at most step / 2, stochastically less than a step.
// round: to nearest even, or stochastically floor(v) + [u < v - floor(v)], u = the top 24 bits of a
//   word of Philox4x32-10, as a fraction. Four columns share one block of it: key = `seed`, counter
//   words 0 and 1 = row * ceil(width / 4) + column / 4, counter words 2 and 3 = `stream` (low words
//   first); word = column % 4. Unbiased, but for numbers within 2^-11 of their row's largest, which
//   the clamp may pull to q. fp32 and bf16 ignore `stochastic`.
// normalise: x is first divided by its root mean square, x / sqrt(mean(x^2) + epsilon). The sum of
//   squares is taken in 32 lanes (lane l adds columns l, l + 32, ... in order), the lanes then
//   pairwise by halves (16, 8, 4, 2, 1).
//
// Numbers that are not finite reach the receiver as such:
//   fp32, bf16  infinities as they are; every NaN as the one quiet NaN 7fc00000 or 7fc0
//   int8, int4  a row that holds a NaN or an infinity has scale NaN (7e00) and codes 0 and decodes
//               to NaN in every column; it has no part in e, so the other rows do not suffer
//   normalise   a row whose sum of squares is not finite (they overflow from 1.8e19 on) is all NaN
// Finite numbers within 2^-11 of fp32's largest may decode to infinity.
//
// CPU and CUDA give the same bytes and the same decoded bits. Nothing is contracted or flushed to
// zero: the caller must not set the FPU to another rounding mode or to flush subnormal numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/base/codec.h"

namespace tessera::kernels {

// Widths an encoder takes: 1 to this (the width must be exact as a float).
inline constexpr int64_t kMaximumWidth = int64_t{1} << 24;

// The memory of `input`, `payload` and `exponent` must not overlap. Rows may be 0: then only the
// exponent is written.
struct EncodeParams {
  const float* input = nullptr;  // [rows, width], contiguous
  int64_t rows = 0;
  int64_t width = 0;
  Codec codec = Codec::kInt4;
  bool normalise = false;
  float epsilon = 1e-5f;  // > 0 where `normalise` is set
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t stream = 0;
  uint8_t* payload = nullptr;   // [payload_bytes(codec, rows, width)], any alignment
  int32_t* exponent = nullptr;  // one number; always written: -126..112, and 0 by fp32 and bf16
};

// Any payload of the right size and any exponent decode without harm (exponents outside -126..127
// as the nearer end).
struct DecodeParams {
  const uint8_t* payload = nullptr;  // [payload_bytes(codec, rows, width)], any alignment
  int32_t exponent = 0;
  int64_t rows = 0;
  int64_t width = 0;
  Codec codec = Codec::kInt4;
  float* output = nullptr;  // [rows, width]; must not overlap the payload
};

// The reference that defines the bytes. Single-threaded. Sizes, pointers or an epsilon that break
// the rules above are bugs of the caller: TESSERA_CHECK.
void encode_cpu(const EncodeParams& params);
void decode_cpu(const DecodeParams& params);

// Device pointers throughout (params.exponent too). `stream_handle` is a cudaStream_t.
// Asynchronous, in stream order, without a workspace or an allocation. Fastest with widths that are
// a multiple of 4, `input` and `output` at a multiple of 16 bytes and codes at a multiple of 4 *
// bits / 8 bytes. Returns a cudaError_t (0: launched; 1, cudaErrorInvalidValue: what the CPU
// version aborts on).
int encode_cuda(const EncodeParams& params, void* stream_handle);
int decode_cuda(const DecodeParams& params, void* stream_handle);

}  // namespace tessera::kernels
