#include "model/attention.h"

#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <tuple>

namespace tessera::model {
namespace {

// cuDNN plans for short sequences and odd heads are few; there ATen picks.
constexpr int64_t kLeastPositions = 64;

struct Split {
  at::Tensor query, key, value;  // [B, heads, T, D], views
};

Split split(const Heads& heads, const at::Tensor& packed) {
  const at::Tensor all = packed.view(
      {heads.batch, heads.positions, heads.heads + 2 * heads.key_heads, heads.head_dim});
  const auto part = [&](int64_t first, int64_t count) {
    return all.narrow(2, first, count).transpose(1, 2);
  };
  return {part(0, heads.heads), part(heads.heads, heads.key_heads),
          part(heads.heads + heads.key_heads, heads.key_heads)};
}

at::Tensor rows_of(const at::Tensor& out, const Heads& heads) {
  return out.transpose(1, 2).reshape(
      {heads.batch * heads.positions, heads.heads * heads.head_dim});
}

at::Tensor heads_of(const at::Tensor& rows, const Heads& heads) {
  return rows.view({heads.batch, heads.positions, heads.heads, heads.head_dim}).transpose(1, 2);
}

AttentionState aten_forward(const Heads& heads, const Split& parts, bool keep) {
  const c10::AutoGradMode with_graph(keep);
  AttentionState state;
  Split inputs = parts;
  if (keep) {
    inputs = {parts.query.detach().requires_grad_(true), parts.key.detach().requires_grad_(true),
              parts.value.detach().requires_grad_(true)};
    state.leaves = {inputs.query, inputs.key, inputs.value};
  }
  const at::Tensor out = at::scaled_dot_product_attention(
      inputs.query, inputs.key, inputs.value, /*attn_mask=*/{}, /*dropout_p=*/0.0,
      /*is_causal=*/true, /*scale=*/std::nullopt, /*enable_gqa=*/heads.heads != heads.key_heads);
  if (keep) state.graph = out;
  state.out = rows_of(out.detach(), heads);
  return state;
}

}  // namespace

AttentionKind choose_attention(const Heads& heads, const at::Device& device, at::ScalarType type,
                               bool deterministic) {
  const bool fits = device.is_cuda() && type == at::kBFloat16 && heads.head_dim % 8 == 0 &&
                    heads.head_dim <= 128 && heads.positions >= kLeastPositions;
  if (!fits) return AttentionKind::kAten;
  return deterministic ? AttentionKind::kFlash : AttentionKind::kCudnn;
}

AttentionState attention_forward(AttentionKind kind, const Heads& heads, const at::Tensor& packed,
                                 bool keep) {
  const Split parts = split(heads, packed);
  if (kind == AttentionKind::kAten) return aten_forward(heads, parts, keep);
  AttentionState state;
  at::Tensor out;
  if (kind == AttentionKind::kCudnn) {
    const auto result = at::_scaled_dot_product_cudnn_attention(
        parts.query, parts.key, parts.value, /*attn_bias=*/std::nullopt,
        /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, /*is_causal=*/true);
    out = std::get<0>(result);
    state.log_sum = std::get<1>(result);
    state.seed = std::get<6>(result);
    state.offset = std::get<7>(result);
  } else {
    const auto result = at::_scaled_dot_product_flash_attention(
        parts.query, parts.key, parts.value, /*dropout_p=*/0.0, /*is_causal=*/true);
    out = std::get<0>(result);
    state.log_sum = std::get<1>(result);
    state.seed = std::get<6>(result);
    state.offset = std::get<7>(result);
  }
  state.out = rows_of(out, heads);
  if (!keep) return {.out = state.out, .log_sum = {}, .seed = {}, .offset = {}, .leaves = {}, .graph = {}};
  return state;
}

AttentionGradient attention_backward(AttentionKind kind, const Heads& heads,
                                     const at::Tensor& packed, const AttentionState& state,
                                     const at::Tensor& dout) {
  const at::Tensor outer = heads_of(dout, heads);
  if (kind == AttentionKind::kAten) {
    const std::vector<at::Tensor> gradients =
        torch::autograd::grad({state.graph}, state.leaves, {outer});
    return {gradients[0], gradients[1], gradients[2]};
  }
  const Split parts = split(heads, packed);
  const at::Tensor out = heads_of(state.out, heads);
  if (kind == AttentionKind::kCudnn) {
    const auto [query, key, value] = at::_scaled_dot_product_cudnn_attention_backward(
        outer, parts.query, parts.key, parts.value, out, state.log_sum, state.seed, state.offset,
        /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, heads.positions, heads.positions,
        /*dropout_p=*/0.0, /*is_causal=*/true);
    return {query, key, value};
  }
  const auto [query, key, value] = at::_scaled_dot_product_flash_attention_backward(
      outer, parts.query, parts.key, parts.value, out, state.log_sum, /*cum_seq_q=*/{},
      /*cum_seq_k=*/{}, heads.positions, heads.positions, /*dropout_p=*/0.0, /*is_causal=*/true,
      state.seed, state.offset);
  return {query, key, value};
}

}  // namespace tessera::model
