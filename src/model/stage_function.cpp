#include "model/stage_function.h"

#include <ATen/ATen.h>

#include <string_view>
#include <utility>

#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

using core::BoundaryKind;
using core::RunSpec;
using ports::TensorLayout;

// Hands out the flat vector's tensors in the order of the layout.
class Cutter {
 public:
  Cutter(std::vector<TensorLayout> layout, const LocateValues& locate, bool requires_grad)
      : layout_(std::move(layout)), locate_(locate), requires_grad_(requires_grad) {}

  // The next `parts` tensors, joined along their first dimension. `name` is the end of the first
  // one's name.
  at::Tensor take(std::string_view name, size_t parts = 1) {
    TESSERA_CHECK(next_ + parts <= layout_.size());
    const TensorLayout& first = layout_[next_];
    const std::string_view full = first.name;
    TESSERA_CHECK(full.size() >= name.size() && full.substr(full.size() - name.size()) == name);
    std::vector<int64_t> shape = first.shape;
    uint64_t count = first.count;
    for (size_t part = 1; part < parts; ++part) {
      shape[0] += layout_[next_ + part].shape[0];
      count += layout_[next_ + part].count;
    }
    next_ += parts;
    const int64_t offset = static_cast<int64_t>(first.offset);
    at::Tensor leaf = locate_(offset, static_cast<int64_t>(count)).view(shape).detach();
    leaf.requires_grad_(requires_grad_);
    leaves_.push_back({leaf, first.offset});
    return leaf;
  }
  std::vector<StageWeights::Leaf> finish() {
    TESSERA_CHECK(next_ == layout_.size());
    return std::move(leaves_);
  }

 private:
  const std::vector<TensorLayout> layout_;
  const LocateValues& locate_;
  const bool requires_grad_;
  size_t next_ = 0;
  std::vector<StageWeights::Leaf> leaves_;
};

ReceiverWeights take_receiver(const RunSpec& spec, Cutter* cutter) {
  ReceiverWeights weights;
  if (spec.boundary.kind == BoundaryKind::kIota) weights.up = cutter->take(".up");
  if (spec.boundary.kind == BoundaryKind::kResidual) {
    weights.decoder_in = cutter->take(".decoder_in");
    weights.decoder_out = cutter->take(".decoder_out");
  }
  if (spec.boundary.kind == BoundaryKind::kAnchored) {
    weights.anchor = cutter->take(".anchor");
    if (spec.boundary.anchor_rank > 0) weights.anchor_basis = cutter->take(".anchor_basis");
    weights.decoder = cutter->take(".decoder");
    weights.gain = cutter->take(".gain");
  }
  return weights;
}

SenderWeights take_sender(const RunSpec& spec, Cutter* cutter) {
  SenderWeights weights;
  if (spec.boundary.kind == BoundaryKind::kIota) weights.down = cutter->take(".down");
  if (spec.boundary.kind == BoundaryKind::kResidual) {
    weights.encoder_in = cutter->take(".encoder_in");
    weights.encoder_out = cutter->take(".encoder_out");
  }
  if (spec.boundary.kind == BoundaryKind::kAnchored) weights.encoder = cutter->take(".encoder");
  return weights;
}

LayerWeights take_layer(Cutter* cutter) {
  LayerWeights weights;
  weights.input_norm = cutter->take(".input_layernorm.weight");
  weights.query_key_value = cutter->take(".q_proj.weight", 3);
  weights.attention_out = cutter->take(".o_proj.weight");
  weights.post_norm = cutter->take(".post_attention_layernorm.weight");
  weights.gate_up = cutter->take(".gate_proj.weight", 2);
  weights.down = cutter->take(".down_proj.weight");
  return weights;
}

}  // namespace

StageWeights make_stage_weights(const RunSpec& spec, StageIndex stage, const at::Tensor& flat,
                                uint64_t version, bool requires_grad) {
  return make_stage_weights(
      spec, stage, [&](int64_t offset, int64_t count) { return flat.narrow(0, offset, count); },
      version, requires_grad);
}

StageWeights make_stage_weights(const RunSpec& spec, StageIndex stage, const LocateValues& locate,
                                uint64_t version, bool requires_grad) {
  Cutter cutter(stage_layout(spec, stage), locate, requires_grad);
  StageWeights weights;
  weights.version = version;
  if (stage == 0) {
    weights.embedding = cutter.take("model.embed_tokens.weight");
  } else {
    weights.receiver = take_receiver(spec, &cutter);
  }
  const core::LayerRange layers = core::layers_of(spec, stage);
  for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
    weights.layers.push_back(take_layer(&cutter));
  }
  if (stage + 1 < spec.pipeline.stages) {
    weights.sender = take_sender(spec, &cutter);
  } else {
    weights.final_norm = cutter.take("model.norm.weight");
    weights.output_head = cutter.take("lm_head.weight");
  }
  weights.leaves = cutter.finish();
  return weights;
}

StageFunction::StageFunction(const RunSpec& spec, StageIndex stage,
                             const at::TensorOptions& compute)
    : spec_(spec), stage_(stage), rope_(make_rope_table(spec.model, compute)) {}

// Layer `index` of the stage. `iota_input`: z [B, T, r] from the boundary when the iota kind has
// this layer receive it; `x` is then ReLU(W_up z). Where the layer sends across an iota boundary,
// the answer is z [B, T, r].
at::Tensor StageFunction::layer(const StageWeights& weights, size_t index, const at::Tensor& x,
                                const at::Tensor& iota_input) const {
  const LayerWeights& layer = weights.layers[index];
  const at::Tensor attended = attention(x, layer, rope_, spec_.model);
  at::Tensor residual;
  if (iota_input.defined()) {
    // [a[:r] + z ; a[r:]]: the residual stream continues from z alone.
    residual = attended + at::constant_pad_nd(iota_input, {0, x.size(-1) - iota_input.size(-1)});
  } else {
    residual = x + attended;
  }
  const at::Tensor fed = feed_forward(residual, layer, spec_.model);
  if (weights.sender.down.defined() && index + 1 == weights.layers.size()) {
    const int64_t rank = weights.sender.down.size(0);
    return at::linear(at::silu(fed), weights.sender.down) + residual.narrow(-1, 0, rank);
  }
  return residual + fed;
}

StageOutput StageFunction::run(const StageWeights& weights, const at::Tensor& tokens,
                               const at::Tensor& boundary) const {
  const double epsilon = spec_.model.norm_epsilon;
  at::Tensor x, iota_input;
  if (is_head()) {
    x = at::embedding(weights.embedding, tokens);
    if (spec_.model.embedding_norm) x = rms_norm(x, {}, epsilon);
  } else {
    const at::Tensor z = boundary.to(weights.leaves.front().tensor.scalar_type());
    if (spec_.boundary.kind == BoundaryKind::kIota) {
      iota_input = z;
      x = at::relu(at::linear(z, weights.receiver.up));
    } else {
      x = decode_boundary(z, tokens, weights.receiver, spec_);
    }
  }
  for (size_t index = 0; index < weights.layers.size(); ++index) {
    x = layer(weights, index, x, index == 0 ? iota_input : at::Tensor());
  }
  if (is_tail()) return {rms_norm(x, weights.final_norm, epsilon), {}};
  x = encode_boundary(x, weights.sender, spec_);
  x = x.to(wide_type(x));
  const at::Tensor wire = x.detach().contiguous();
  if (spec_.boundary.kind == BoundaryKind::kAnchored) x = rms_norm(x, {}, epsilon);
  return {x, wire};
}

at::Tensor StageFunction::loss(const StageWeights& weights, const at::Tensor& hidden,
                               const at::Tensor& targets) const {
  return linear_cross_entropy(hidden.reshape({-1, hidden.size(-1)}), weights.output_head,
                              targets.reshape({-1}));
}

at::Tensor StageFunction::logits(const StageWeights& weights, const at::Tensor& hidden) const {
  const at::Tensor values = at::linear(hidden, weights.output_head);
  return values.to(wide_type(values));
}

}  // namespace tessera::model
