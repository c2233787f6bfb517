// The token embedding, with or without RMS normalisation (no weight), and its gradient without
// atomics. Rules and NaN policy: real.h. Widths: 1 to kMaximumRowWidth.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// y[n] = table[ids[n]], normalised: times rstd[n] = 1 / sqrt(mean(table[ids[n]]^2) + epsilon)
// An id outside [0, vocabulary), which the caller should have refused, gives a row of NaN.
struct EmbeddingForwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t vocabulary = 0;  // 1 to 2^31 - 1
  bool normalise = false;
  float epsilon = 1e-5f;         // > 0 where `normalise` is set
  const void* table = nullptr;   // [vocabulary, width]
  const int32_t* ids = nullptr;  // [rows]
  void* y = nullptr;             // [rows, width]
  float* rstd = nullptr;         // [rows], or null: not wanted; only where `normalise` is set
};

// For every id that occurs: table_gradient[id] += (or =) the gradient of its table row, from the
// fp32 sum, in the order given, of its rows of dy. The normalisation's gradient is linear in dy and
// the same for all rows of an id: it is applied once, to the sum, with the table's row of now (the
// one of the forward pass) and the forward pass' epsilon. Rows of ids that do not occur are not
// touched, nor does an id outside [0, vocabulary) touch anything.
struct EmbeddingBackwardParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;  // at most 2^31 - 1
  int64_t width = 0;
  int64_t vocabulary = 0;
  bool normalise = false;
  float epsilon = 1e-5f;
  const void* table = nullptr;          // [vocabulary, width] where `normalise` is set
  const int32_t* sorted_ids = nullptr;  // [rows], ascending
  const int32_t* order = nullptr;       // [rows]: the row of dy that has sorted_ids[i] is order[i]
  const void* dy = nullptr;             // [rows, width]
  bool accumulate = true;               // adds to the table's gradient; else overwrites
  float* table_gradient = nullptr;      // [vocabulary, width]
  // [embedding_partial_rows(rows), width]. CUDA only.
  float* partials = nullptr;
};

// Two for every piece of 32 rows.
int64_t embedding_partial_rows(int64_t rows);

void embedding_forward_cpu(const EmbeddingForwardParams& params);
void embedding_backward_cpu(const EmbeddingBackwardParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int embedding_forward_cuda(const EmbeddingForwardParams& params, void* stream_handle);
int embedding_backward_cuda(const EmbeddingBackwardParams& params, void* stream_handle);

}  // namespace tessera::kernels
