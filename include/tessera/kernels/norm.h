// RMSNorm with the residual addition before it, and its gradient. Rules and NaN policy: real.h.
// Widths: 1 to kMaximumRowWidth.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// sum = round(x + delta), or x where there is no delta
// rstd = 1 / sqrt(mean(sum^2) + epsilon)
// y = sum * rstd * weight
// The norm is of the rounded sum: the backward pass sees the same numbers.
struct ResidualNormForwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  float epsilon = 1e-5f;         // > 0
  const void* x = nullptr;       // [rows, width]
  const void* delta = nullptr;   // [rows, width], or null
  const void* weight = nullptr;  // [width], or null: ones
  void* sum = nullptr;           // [rows, width], may be x or delta; null exactly if delta is
  void* y = nullptr;             // [rows, width]
  float* rstd = nullptr;         // [rows], or null: not wanted
};

// dx = dresidual + rstd * (g - n * mean(g * n)) with n = sum * rstd, g = dy * weight
// weight_gradient = (or +=) the sum over the rows of dy * n
// y, where wanted, is made again from sum and rstd: the engine need not keep it.
struct NormBackwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  const void* dy = nullptr;          // [rows, width]
  const void* sum = nullptr;         // [rows, width]: what was normalised
  const float* rstd = nullptr;       // [rows]
  const void* weight = nullptr;      // [width], or null: ones
  const void* dresidual = nullptr;   // [rows, width], or null: zeros
  void* dx = nullptr;                // [rows, width]; may be dy or dresidual
  void* y = nullptr;                 // [rows, width], or null: not wanted
  float* weight_gradient = nullptr;  // [width], or null: not wanted
  bool accumulate = true;            // adds to weight_gradient; else overwrites it
  // [norm_partial_rows(rows, width), width] where the weight's gradient is wanted. CUDA only.
  float* partials = nullptr;
};

// At most 792.
int64_t norm_partial_rows(int64_t rows, int64_t width);

void residual_norm_forward_cpu(const ResidualNormForwardParams& params);
void norm_backward_cpu(const NormBackwardParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int residual_norm_forward_cuda(const ResidualNormForwardParams& params, void* stream_handle);
int norm_backward_cuda(const NormBackwardParams& params, void* stream_handle);

}  // namespace tessera::kernels
