// The wire codecs of the boundary: rows of numbers to bytes and back.
//
// Payload of `rows` rows of `width` numbers:
//   fp32            codes: rows * width little-endian floats
//   bf16            codes: rows * width bfloat16, rounded to nearest even
//   int8, int4      scales: rows fp16, then codes: rows * row_bytes
//                   int8: one two's complement byte a number; int4: two's complement nibbles, the even column in the
//                   low nibble, each row padded with zero to whole bytes.
//
// Integer codecs, row x, q = 127 (int8) or 7 (int4), e the frame's exponent:
//   scale = fp16(amax(|x|) / q * 2^-e), never below fp16's smallest normal number unless the row is all zero (scale 0)
//   code  = clamp(round(x / (scale * 2^e)), -q, q)             value = code * scale * 2^e
// e = floor(log2(amax over all rows)), or 0 if that is zero: it keeps the fp16 scales of tiny gradients normal.
// round: to nearest even, or stochastically floor(v + u), u = 24 uniform bits of Philox4x32-10 with
//   key = `seed`, counter = (stream, row * width + column): the same on every device.
// normalise: x is first divided by its root mean square, x / sqrt(mean(x^2) + epsilon). The sum of squares is taken in
//   32 lanes (lane l adds columns l, l + 32, ... in order), the lanes then pairwise by halves (16, 8, 4, 2, 1).
// Not a number in a row: that row's codes are 0 and its scale is NaN, so that the receiver sees it (int codecs).
//
// CPU and CUDA give the same bytes. No multiply-add is contracted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/base/codec.h"

namespace tessera::kernels {

struct EncodeParams {
  const float* input = nullptr;  // [rows, width], contiguous
  int64_t rows = 0;
  int64_t width = 0;
  Codec codec = Codec::kInt4;
  bool normalise = false;
  float epsilon = 1e-5f;
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t stream = 0;
  uint8_t* payload = nullptr;   // [payload_bytes(codec, rows, width)]
  int32_t* exponent = nullptr;  // one number; always written
};

struct DecodeParams {
  const uint8_t* payload = nullptr;
  int32_t exponent = 0;
  int64_t rows = 0;
  int64_t width = 0;
  Codec codec = Codec::kInt4;
  float* output = nullptr;  // [rows, width]
};

void encode_cpu(const EncodeParams& params);
void decode_cpu(const DecodeParams& params);

// Device pointers throughout (params.exponent too). `stream_handle` is a cudaStream_t. Asynchronous. Returns a
// cudaError_t (0: launched).
int encode_cuda(const EncodeParams& params, void* stream_handle);
int decode_cuda(const DecodeParams& params, void* stream_handle);

}  // namespace tessera::kernels
