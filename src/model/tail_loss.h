// The end of the last stage: norm, output head and cross-entropy, in pieces of rows, so that the
// logits [N, V] never exist. The gradients are made on the way, which saves computing the logits
// twice.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/matrix_product.h"
#include "model/stage_ops.h"
#include "model/trunk.h"

namespace tessera::model {

struct TailWeights {
  at::Tensor norm;  // [d]
  at::Tensor head;  // [V, d], followed in memory by zeros up to whole pieces of kVocabularyPiece
};
inline constexpr int64_t kVocabularyPiece = 128;

struct TailState {
  at::Tensor x;                // [N, d], the last layer's output
  NormResult norm;
  at::Tensor hidden_gradient;  // [N, d]
  at::Tensor head_gradient;    // [V, d] fp32
};

// `share` times the mean loss of the rows, one fp64 number on the device. `share`: of all rows of the
// microbatch, if these are a part of them. `state`: null for no gradients.
at::Tensor tail_forward(const TailWeights& weights, const at::Tensor& x, const at::Tensor& targets,
                        double epsilon, double share, MatrixProduct* product, TailState* state);
// The gradient of x.
at::Tensor tail_backward(const TailWeights& weights, TailState state, GradientSink* sink);

}  // namespace tessera::model
