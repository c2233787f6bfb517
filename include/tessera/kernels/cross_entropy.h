// Cross-entropy of a chunk of rows: the losses, and the logits' gradient in their place. Rules and
// NaN policy: real.h.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// losses[n] = log(sum of exp(logits[n])) - logits[n][target]
// logits[n] = (softmax(logits[n]) - onehot(target)) * scale, where the gradient is wanted
// Columns vocabulary..columns-1 are padding: whatever they hold is ignored, their gradient is 0.
// A target outside [0, vocabulary), which the caller should have refused, has the loss NaN and the
// gradient 0. Logits of -infinity are probabilities of 0; a row of nothing else is NaN.
struct CrossEntropyParams {
  Real type = Real::kBfloat16;
  int64_t rows = 0;
  int64_t vocabulary = 0;            // 1 to 2^30
  int64_t columns = 0;               // >= vocabulary: the stride of a row; up to 2^30
  float scale = 1.0f;                // commonly 1 / tokens of the step
  bool gradient = true;              // false: the logits stay
  void* logits = nullptr;            // [rows, columns]
  const int32_t* targets = nullptr;  // [rows]
  float* losses = nullptr;           // [rows]
};

inline bool are_cross_entropy_sizes(const CrossEntropyParams& params) {
  return params.rows >= 0 && params.vocabulary >= 1 && params.vocabulary <= params.columns &&
         params.columns <= int64_t{1} << 30;
}

void cross_entropy_cpu(const CrossEntropyParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t.
int cross_entropy_cuda(const CrossEntropyParams& params, void* stream_handle);

}  // namespace tessera::kernels
