// Causal self-attention on a packed projection, forward and backward: cuDNN's kernels where they
// fit (native grouped queries, no copies), else ATen's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/stage_ops.h"

namespace tessera::model {

enum class AttentionKind : uint8_t {
  kCudnn,  // fastest on Hopper
  kFlash,  // its backward can be made bitwise repeatable
  kAten,   // whatever ATen picks, by autograd: any device and shape
};
AttentionKind choose_attention(const Heads& heads, const at::Device& device,
                               at::ScalarType type, bool deterministic);

// What backward() needs besides the packed tensor.
struct AttentionState {
  at::Tensor out;                    // [N, H D]
  at::Tensor log_sum, seed, offset;  // cuDNN, flash
  std::vector<at::Tensor> leaves;    // kAten: query, key, value
  at::Tensor graph;                  // kAten: the output, with its graph
};

// packed: [N, (H + 2G) D], rotated.
AttentionState attention_forward(AttentionKind kind, const Heads& heads, const at::Tensor& packed,
                                 bool keep);
struct AttentionGradient {
  at::Tensor query, key, value;  // [B, heads, T, D], any layout
};
AttentionGradient attention_backward(AttentionKind kind, const Heads& heads,
                                     const at::Tensor& packed, const AttentionState& state,
                                     const at::Tensor& dout);

}  // namespace tessera::model
