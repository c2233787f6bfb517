// Rotary positions in the "rotate_half" convention: with a the first and b the second half of a
// head, (a, b) becomes (a cos - b sin, b cos + a sin). The inverse rotation is the gradient of the
// rotation. Rules and NaN policy: real.h.
//
// The packed tensor [rows, (heads + 2 * key_heads) * head_dim] holds queries, keys and values side
// by side. Row n is position n % positions. Tables are [positions, head_dim / 2], fp32.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// Sizes both functions share. head_dim is even; all sizes but `rows` are at least 1; a row has at
// most 2^24 numbers, rows and positions are below 2^31. For the gradient, rows is a multiple of
// positions.
struct RopeShape {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t positions = 0;
  int64_t heads = 0;      // of queries
  int64_t key_heads = 0;  // of keys, and of values
  int64_t head_dim = 0;
};

inline bool are_rope_sizes(const RopeShape& shape) {
  constexpr int64_t kMaximumRow = int64_t{1} << 24;
  const auto within = [](int64_t size, int64_t largest) { return size >= 1 && size <= largest; };
  return shape.rows >= 0 && shape.rows < int64_t{1} << 31 &&
         within(shape.positions, (int64_t{1} << 31) - 1) && within(shape.heads, kMaximumRow) &&
         within(shape.key_heads, kMaximumRow) && within(shape.head_dim, kMaximumRow) &&
         shape.head_dim % 2 == 0 &&
         shape.heads + 2 * shape.key_heads <= kMaximumRow / shape.head_dim;
}

// Rotates queries and keys in place; values stay.
struct RopeParams {
  RopeShape shape;
  const float* cosine = nullptr;
  const float* sine = nullptr;
  bool inverse = false;
  void* packed = nullptr;
};

// A tensor of heads in any layout: number i of head h at position t of sequence s is
// data[s * sequence_stride + t * position_stride + h * head_stride + i]. Strides in elements.
//   [B, T, H, D]: sequence T*H*D, position H*D, head D
//   [B, H, T, D]: sequence H*T*D, position D, head T*D
struct HeadTensor {
  const void* data = nullptr;
  int64_t sequence_stride = 0;
  int64_t position_stride = 0;
  int64_t head_stride = 0;
};

// Attention's gradients to the gradient of the packed tensor before its rotation: turns dquery and
// dkey back, copies dvalue.
struct RopePackParams {
  RopeShape shape;
  const float* cosine = nullptr;
  const float* sine = nullptr;
  HeadTensor dquery;  // heads heads
  HeadTensor dkey;    // key_heads heads
  HeadTensor dvalue;  // key_heads heads
  void* packed = nullptr;
};

void rope_cpu(const RopeParams& params);
void rope_pack_gradient_cpu(const RopePackParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int rope_cuda(const RopeParams& params, void* stream_handle);
int rope_pack_gradient_cuda(const RopePackParams& params, void* stream_handle);

}  // namespace tessera::kernels
