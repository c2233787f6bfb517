// The receiving side of an anchored boundary: the token's anchor, corrected by what came over the
// channel, normalised. Rules and NaN policy: real.h. Widths: 1 to kMaximumRowWidth.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// The anchors: rows of a table by id, or (ids null: a factorised table) one row for every token.
// An id outside [0, vocabulary), which the caller should have refused, gives a row of NaN.
struct AnchorRows {
  const void* data = nullptr;    // [vocabulary, width]; without ids [rows, width]
  const int32_t* ids = nullptr;  // [rows], or null
  int64_t vocabulary = 0;        // where there are ids
};

// u = round(anchor + gain * channel / sqrt(rank))
// rstd = 1 / sqrt(mean(u^2) + epsilon)
// y = u * rstd
// The norm is of the rounded u, also where u is not written.
struct AnchorForwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t rank = 0;       // numbers of the channel per token, >= 1
  float epsilon = 1e-5f;  // > 0
  AnchorRows anchor;
  const void* channel = nullptr;  // [rows, width]: the decoder times what came
  const void* gain = nullptr;     // [width]
  void* u = nullptr;              // [rows, width], may be the channel; or null: not wanted
  void* y = nullptr;              // [rows, width]
  float* rstd = nullptr;          // [rows]
};

// du = rstd * (dy - n * mean(dy * n)) with n = u * rstd
// dchannel = du * gain / sqrt(rank)
// gain_gradient = (or +=) the sum over the rows of du * channel / sqrt(rank)
// du is the gradient of the anchor rows.
struct AnchorBackwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t rank = 0;
  const void* u = nullptr;  // [rows, width], or null: made again from the anchor
  AnchorRows anchor;        // read only where u is null
  const void* channel = nullptr;
  const void* gain = nullptr;
  const float* rstd = nullptr;
  const void* dy = nullptr;        // [rows, width]
  void* du = nullptr;              // [rows, width]; may be dy
  void* dchannel = nullptr;        // [rows, width]; may be the channel
  float* gain_gradient = nullptr;  // [width]
  bool accumulate = true;          // adds to gain_gradient; else overwrites it
  // [anchor_partial_rows(rows, width), width]. CUDA only.
  float* partials = nullptr;
};

// At most 792.
int64_t anchor_partial_rows(int64_t rows, int64_t width);

void anchor_forward_cpu(const AnchorForwardParams& params);
void anchor_backward_cpu(const AnchorBackwardParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int anchor_forward_cuda(const AnchorForwardParams& params, void* stream_handle);
int anchor_backward_cuda(const AnchorBackwardParams& params, void* stream_handle);

}  // namespace tessera::kernels
