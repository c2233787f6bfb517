// SwiGLU on a fused projection: the gate and up halves lie side by side in each row.
// Widths: 1 to kMaximumSwigluWidth. Rules and NaN policy: real.h; silu(-infinity) is NaN. On a GPU
// a sigmoid below 2^-126 may be 0.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

inline constexpr int64_t kMaximumSwigluWidth = int64_t{1} << 24;

// h = silu(gate) * up, silu(v) = v / (1 + exp(-v))
struct SwigluForwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  const void* gate_up = nullptr;  // [rows, 2 * width]: gate first
  void* h = nullptr;              // [rows, width]
};

// dgate = dh * up * s * (1 + gate * (1 - s)), dup = dh * gate * s, s = 1 / (1 + exp(-gate))
// h, where wanted, is made again: the engine need not keep it.
struct SwigluBackwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  const void* dh = nullptr;       // [rows, width]
  const void* gate_up = nullptr;  // [rows, 2 * width]
  void* dgate_up = nullptr;       // [rows, 2 * width]; may be gate_up
  void* h = nullptr;              // [rows, width], may be dh; or null: not wanted
};

void swiglu_forward_cpu(const SwigluForwardParams& params);
void swiglu_backward_cpu(const SwigluBackwardParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int swiglu_forward_cuda(const SwigluForwardParams& params, void* stream_handle);
int swiglu_backward_cuda(const SwigluBackwardParams& params, void* stream_handle);

}  // namespace tessera::kernels
