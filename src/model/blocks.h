// The pieces of a Llama layer as functions of tensors. They compute in the dtype of their weights:
// fp32 on a CPU, bf16 on CUDA, and double in the tests of the gradients. Shapes: B sequences, T
// tokens, d width, H heads, G kv heads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "tessera/core/run_spec.h"

namespace tessera::model {

struct LayerWeights {
  at::Tensor input_norm;       // [d]
  at::Tensor query_key_value;  // [d + 2 G d/H, d]: q, k and v lie side by side in the flat vector
  at::Tensor attention_out;    // [d, d]
  at::Tensor post_norm;        // [d]
  at::Tensor gate_up;          // [2 ffn, d]
  at::Tensor down;             // [d, ffn]
};

struct RopeTable {
  at::Tensor cosine;  // [context, 1, d / H / 2]
  at::Tensor sine;
};
RopeTable make_rope_table(const core::ModelSpec& model, const at::TensorOptions& options);

// x / sqrt(mean(x^2) + epsilon) over the last dimension, times `weight` if it is defined.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// Attn(RMSNorm x): causal self-attention with rotary positions in the "rotate_half" convention; no
// residual. x: [B, T, d].
at::Tensor attention(const at::Tensor& x, const LayerWeights& weights, const RopeTable& rope,
                     const core::ModelSpec& model);

// SwiGLU(RMSNorm x); no residual.
at::Tensor feed_forward(const at::Tensor& x, const LayerWeights& weights,
                        const core::ModelSpec& model);

// Mean cross-entropy of the rows of hidden [N, d] against targets [N] (int64) under the logits
// hidden head^T, head [V, d]. Takes 1024 rows at a time, so that the logits [N, V] never exist; the
// gradients are computed on the way (if any are wanted), which saves computing the logits twice.
// Returns a scalar, fp32 (double for double).
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                                const at::Tensor& targets);

// fp32, or double as it is: what losses and boundary tensors are held in.
at::ScalarType wide_type(const at::Tensor& tensor);

}  // namespace tessera::model
