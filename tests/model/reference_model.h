// The whole model written a second time, plainly, with torch::: one graph from tokens to loss,
// textbook attention, whole logits, boundaries as in DESIGN section 3 without a wire,
// torch::optim::AdamW. The engine must agree with it.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tessera/model/stage_layout.h"

namespace tessera::model {

class ReferenceModel {
 public:
  // `masters[s]`: stage s's flat vector.
  ReferenceModel(const core::RunSpec& spec, const std::vector<std::vector<float>>& masters)
      : spec_(spec) {
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      std::vector<torch::Tensor> matrices, vectors;
      for (const ports::TensorLayout& tensor : stage_layout(spec, stage)) {
        torch::Tensor value =
            torch::from_blob(const_cast<float*>(masters[stage].data()) + tensor.offset,
                             tensor.shape)
                .clone()
                .requires_grad_(true);
        parameters_[tensor.name] = value;
        (tensor.shape.size() > 1 ? matrices : vectors).push_back(value);
      }
      const core::TrainingSpec& training = spec.training;
      auto options = [&](double decay) {
        return std::make_unique<torch::optim::AdamWOptions>(
            torch::optim::AdamWOptions(1e-3)
                .betas({training.beta1, training.beta2})
                .eps(training.epsilon)
                .weight_decay(decay));
      };
      std::vector<torch::optim::OptimizerParamGroup> groups;
      groups.emplace_back(matrices, options(training.weight_decay));
      if (!vectors.empty()) groups.emplace_back(vectors, options(0));
      optimizers_.push_back(std::make_unique<torch::optim::AdamW>(groups));
    }
  }

  const torch::Tensor& parameter(const std::string& name) const { return parameters_.at(name); }

  // tokens [B, T + 1] int64 -> mean cross-entropy.
  torch::Tensor loss(const torch::Tensor& tokens) const {
    const int64_t length = tokens.size(1) - 1;
    const torch::Tensor ids = tokens.narrow(1, 0, length);
    torch::Tensor x = torch::nn::functional::embedding(ids, parameter("model.embed_tokens.weight"));
    if (spec_.model.embedding_norm) x = normalise(x);
    for (StageIndex stage = 0; stage < spec_.pipeline.stages; ++stage) {
      const core::LayerRange layers = core::layers_of(spec_, stage);
      const bool receives = stage > 0, sends = stage + 1 < spec_.pipeline.stages;
      if (receives && spec_.boundary.kind != core::BoundaryKind::kIota)
        x = receive(x, ids, stage - 1);
      for (uint32_t n = layers.begin; n < layers.end; ++n) {
        x = layer(x, n, receives && n == layers.begin ? static_cast<int>(stage) - 1 : -1,
                  sends && n + 1 == layers.end ? static_cast<int>(stage) : -1);
      }
      if (sends && spec_.boundary.kind != core::BoundaryKind::kIota) x = send(x, stage);
    }
    const torch::Tensor logits = torch::matmul(normalise(x) * parameter("model.norm.weight"),
                                               parameter("lm_head.weight").t());
    return torch::nn::functional::cross_entropy(logits.reshape({-1, logits.size(-1)}),
                                                tokens.narrow(1, 1, length).reshape({-1}));
  }

  // Clips each stage by itself and steps. The gradients are then cleared. Returns the norms before
  // clipping.
  std::vector<double> step(double learning_rate) {
    std::vector<double> norms;
    for (auto& optimizer : optimizers_) {
      std::vector<torch::Tensor> all;
      for (auto& group : optimizer->param_groups()) {
        static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate);
        all.insert(all.end(), group.params().begin(), group.params().end());
      }
      norms.push_back(torch::nn::utils::clip_grad_norm_(all, spec_.training.clip_norm));
      optimizer->step();
      optimizer->zero_grad();
    }
    return norms;
  }

  // A stage's values or gradients in the flat order.
  torch::Tensor flat(StageIndex stage, bool gradients) const {
    std::vector<torch::Tensor> pieces;
    for (const ports::TensorLayout& tensor : stage_layout(spec_, stage)) {
      const torch::Tensor& value = parameter(tensor.name);
      pieces.push_back((gradients ? value.grad() : value.detach()).reshape({-1}));
    }
    return torch::cat(pieces);
  }

 private:
  torch::Tensor normalise(const torch::Tensor& x) const {
    return x * torch::rsqrt(x.pow(2).mean(-1, /*keepdim=*/true) + spec_.model.norm_epsilon);
  }

  torch::Tensor rotate(const torch::Tensor& x) const {  // [B, heads, T, head_dim]
    const int64_t head_dim = x.size(3), half = head_dim / 2;
    const torch::Tensor frequency =
        1.0 / torch::pow(spec_.model.rope_theta,
                         torch::arange(0, head_dim, 2).to(torch::kFloat) / head_dim);
    const torch::Tensor angle = torch::outer(torch::arange(x.size(2)).to(torch::kFloat), frequency);
    const torch::Tensor both = torch::cat({angle, angle}, -1);
    const torch::Tensor half_turned =
        torch::cat({-x.narrow(3, half, half), x.narrow(3, 0, half)}, -1);
    return x * both.cos() + half_turned * both.sin();
  }

  torch::Tensor attend(const torch::Tensor& x, const std::string& prefix) const {
    const int64_t batch = x.size(0), length = x.size(1), heads = spec_.model.heads,
                  groups = spec_.model.kv_heads;
    const int64_t head_dim = spec_.model.width / heads;
    const torch::Tensor normal = normalise(x) * parameter(prefix + "input_layernorm.weight");
    auto project = [&](const char* name, int64_t count) {
      return torch::matmul(normal, parameter(prefix + "self_attn." + name + "_proj.weight").t())
          .view({batch, length, count, head_dim})
          .transpose(1, 2);
    };
    const torch::Tensor query = rotate(project("q", heads));
    const torch::Tensor key = rotate(project("k", groups)).repeat_interleave(heads / groups, 1);
    const torch::Tensor value = project("v", groups).repeat_interleave(heads / groups, 1);
    const torch::Tensor future = torch::ones({length, length}, torch::kBool).triu(1);
    const torch::Tensor scores =
        (torch::matmul(query, key.transpose(2, 3)) / std::sqrt(static_cast<double>(head_dim)))
            .masked_fill(future, -std::numeric_limits<float>::infinity());
    const torch::Tensor mixed = torch::matmul(torch::softmax(scores, -1), value);
    return torch::matmul(mixed.transpose(1, 2).reshape({batch, length, heads * head_dim}),
                         parameter(prefix + "self_attn.o_proj.weight").t());
  }

  torch::Tensor feed(const torch::Tensor& x, const std::string& prefix) const {
    const torch::Tensor normal =
        normalise(x) * parameter(prefix + "post_attention_layernorm.weight");
    const torch::Tensor gate =
        torch::matmul(normal, parameter(prefix + "mlp.gate_proj.weight").t());
    const torch::Tensor up = torch::matmul(normal, parameter(prefix + "mlp.up_proj.weight").t());
    return torch::matmul(gate * torch::sigmoid(gate) * up,
                         parameter(prefix + "mlp.down_proj.weight").t());
  }

  // `received` and `sent`: boundary numbers this layer is next to, or -1. Only the iota kind cares.
  torch::Tensor layer(const torch::Tensor& x, uint32_t n, int received, int sent) const {
    const std::string prefix = "model.layers." + std::to_string(n) + ".";
    const bool iota = spec_.boundary.kind == core::BoundaryKind::kIota;
    torch::Tensor residual;
    if (iota && received >= 0) {
      const torch::Tensor y = torch::relu(torch::matmul(x, boundary(received, "up").t()));
      const torch::Tensor a = attend(y, prefix);
      const int64_t r = x.size(-1), d = a.size(-1);
      residual = torch::cat({a.narrow(-1, 0, r) + x, a.narrow(-1, r, d - r)}, -1);
    } else {
      residual = x + attend(x, prefix);
    }
    const torch::Tensor fed = feed(residual, prefix);
    if (iota && sent >= 0) {
      const torch::Tensor down = boundary(sent, "down");
      return torch::matmul(fed * torch::sigmoid(fed), down.t()) +
             residual.narrow(-1, 0, down.size(0));
    }
    return residual + fed;
  }

  torch::Tensor boundary(int64_t index, const char* name) const {
    return parameter("boundary." + std::to_string(index) + "." + name);
  }

  torch::Tensor send(const torch::Tensor& x, StageIndex index) const {
    if (spec_.boundary.kind == core::BoundaryKind::kNone) return x;
    if (spec_.boundary.kind == core::BoundaryKind::kAnchored) {
      return normalise(torch::matmul(normalise(x), boundary(index, "encoder").t()));
    }
    const torch::Tensor hidden = torch::matmul(normalise(x), boundary(index, "encoder_in").t());
    const torch::Tensor second = boundary(index, "encoder_out");
    return x.narrow(-1, 0, second.size(0)) +
           torch::matmul(hidden * torch::sigmoid(hidden), second.t());
  }

  torch::Tensor receive(const torch::Tensor& z, const torch::Tensor& ids, StageIndex index) const {
    if (spec_.boundary.kind == core::BoundaryKind::kNone) return z;
    if (spec_.boundary.kind == core::BoundaryKind::kAnchored) {
      torch::Tensor anchor = boundary(index, "anchor").index({ids});
      if (spec_.boundary.anchor_rank > 0)
        anchor = torch::matmul(anchor, boundary(index, "anchor_basis"));
      const torch::Tensor channel = torch::matmul(z, boundary(index, "decoder").t()) /
                                    std::sqrt(static_cast<double>(z.size(-1)));
      return normalise(anchor + boundary(index, "gain") * channel);
    }
    const torch::Tensor hidden = torch::matmul(z, boundary(index, "decoder_in").t());
    const torch::Tensor second = boundary(index, "decoder_out");
    const torch::Tensor padding = torch::zeros({z.size(0), z.size(1), second.size(0) - z.size(-1)});
    return torch::cat({z, padding}, -1) +
           torch::matmul(hidden * torch::sigmoid(hidden), second.t());
  }

  const core::RunSpec spec_;
  std::map<std::string, torch::Tensor> parameters_;
  std::vector<std::unique_ptr<torch::optim::AdamW>> optimizers_;
};

}  // namespace tessera::model
