#include "model/blocks.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

namespace tessera::model {
namespace {

constexpr int64_t kLossRows = 1024;

// Rotates the halves of each head: x [B, T, heads, head_dim] -> (a cos - b sin, b cos + a sin).
at::Tensor rotate(const at::Tensor& x, const RopeTable& rope) {
  const int64_t half = x.size(3) / 2;
  const at::Tensor cosine = rope.cosine.narrow(0, 0, x.size(1));
  const at::Tensor sine = rope.sine.narrow(0, 0, x.size(1));
  const at::Tensor a = x.narrow(3, 0, half), b = x.narrow(3, half, half);
  return at::cat({a * cosine - b * sine, b * cosine + a * sine}, 3);
}

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& hidden,
                            const at::Tensor& head, const at::Tensor& targets,
                            bool with_gradients) {
    const int64_t rows = hidden.size(0);
    const at::ScalarType wide = wide_type(hidden);
    at::Tensor total = at::zeros({}, hidden.options().dtype(wide));
    at::Tensor hidden_gradient, head_gradient;
    if (with_gradients) {
      hidden_gradient = at::empty_like(hidden);
      head_gradient = at::zeros(head.sizes(), head.options().dtype(wide));
    }
    for (int64_t begin = 0; begin < rows; begin += kLossRows) {
      const int64_t count = std::min(kLossRows, rows - begin);
      const at::Tensor x = hidden.narrow(0, begin, count);
      const at::Tensor target = targets.narrow(0, begin, count).unsqueeze(1);
      at::Tensor log_probability = at::log_softmax(at::matmul(x, head.t()), 1, wide);
      total -= log_probability.gather(1, target).sum();
      if (!with_gradients) continue;
      // d loss / d logits = (softmax - one-hot) / rows
      at::Tensor gradient = log_probability.exp_();
      gradient.scatter_add_(1, target, at::full_like(target, -1, gradient.options()));
      gradient = gradient.div_(static_cast<double>(rows)).to(hidden.scalar_type());
      at::Tensor hidden_rows = hidden_gradient.narrow(0, begin, count);
      at::mm_out(hidden_rows, gradient, head);
      if (head.scalar_type() == wide) {
        head_gradient.addmm_(gradient.t(), x);
      } else {
        head_gradient.add_(at::mm(gradient.t(), x));  // summed over the pieces in fp32
      }
    }
    if (with_gradients) {
      context->save_for_backward({hidden_gradient, head_gradient.to(head.scalar_type())});
    }
    return total / static_cast<double>(rows);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list outer) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    at::Tensor hidden_gradient, head_gradient;
    if (context->needs_input_grad(0)) {
      hidden_gradient = saved[0] * outer[0].to(saved[0].scalar_type());
    }
    if (context->needs_input_grad(1))
      head_gradient = saved[1] * outer[0].to(saved[1].scalar_type());
    return {hidden_gradient, head_gradient, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::ScalarType wide_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

RopeTable make_rope_table(const core::ModelSpec& model, const at::TensorOptions& options) {
  const int64_t head_dim = model.width / model.heads;
  // Angles in double: in fp32 a position of some thousands would already be off by 1e-4.
  const at::TensorOptions host = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor exponent = at::arange(0, head_dim, 2, host) / static_cast<double>(head_dim);
  const at::Tensor frequency = at::pow(model.rope_theta, -exponent);
  const at::Tensor position = at::arange(static_cast<int64_t>(model.context), host);
  const at::Tensor angle = at::outer(position, frequency).unsqueeze(1);
  return {angle.cos().to(options), angle.sin().to(options)};
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return at::rms_norm(x, {x.size(-1)}, weight.defined() ? std::optional(weight) : std::nullopt,
                      epsilon);
}

at::Tensor attention(const at::Tensor& x, const LayerWeights& weights, const RopeTable& rope,
                     const core::ModelSpec& model) {
  const int64_t batch = x.size(0), length = x.size(1);
  const int64_t heads = model.heads, kv_heads = model.kv_heads,
                head_dim = model.width / model.heads;
  const at::Tensor all =
      at::linear(rms_norm(x, weights.input_norm, model.norm_epsilon), weights.query_key_value)
          .view({batch, length, heads + 2 * kv_heads, head_dim});
  const at::Tensor rotated = rotate(all.narrow(2, 0, heads + kv_heads), rope);
  const at::Tensor query = rotated.narrow(2, 0, heads).transpose(1, 2);
  const at::Tensor key = rotated.narrow(2, heads, kv_heads).transpose(1, 2);
  const at::Tensor value = all.narrow(2, heads + kv_heads, kv_heads).transpose(1, 2);
  const at::Tensor mixed =
      at::scaled_dot_product_attention(query, key, value, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                       /*is_causal=*/true, /*scale=*/std::nullopt,
                                       /*enable_gqa=*/heads != kv_heads);
  return at::linear(mixed.transpose(1, 2).reshape({batch, length, heads * head_dim}),
                    weights.attention_out);
}

at::Tensor feed_forward(const at::Tensor& x, const LayerWeights& weights,
                        const core::ModelSpec& model) {
  const at::Tensor both =
      at::linear(rms_norm(x, weights.post_norm, model.norm_epsilon), weights.gate_up);
  const int64_t width = both.size(-1) / 2;
  return at::linear(at::silu(both.narrow(-1, 0, width)) * both.narrow(-1, width, width),
                    weights.down);
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                                const at::Tensor& targets) {
  // Asked here: inside forward() gradient mode is off.
  const bool with_gradients =
      at::GradMode::is_enabled() && (hidden.requires_grad() || head.requires_grad());
  return LinearCrossEntropy::apply(hidden, head, targets, with_gradients);
}

}  // namespace tessera::model
