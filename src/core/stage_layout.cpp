#include "tessera/core/stage_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace tessera::core {
namespace {

constexpr std::string_view kLayers = "model.layers.";

class LayoutBuilder {
 public:
  void add(std::string name, std::vector<int64_t> shape) {
    uint64_t count = 1;
    for (int64_t size : shape) count *= static_cast<uint64_t>(size);
    layout_.push_back({std::move(name), std::move(shape), next_, count});
    next_ += count;
  }
  std::vector<TensorLayout> take() { return std::move(layout_); }

 private:
  std::vector<TensorLayout> layout_;
  uint64_t next_ = 0;
};

int64_t residual_hidden(int64_t rank) { return std::max<int64_t>(4 * rank, 64); }

void add_receiver(const RunSpec& spec, uint32_t boundary, LayoutBuilder* builder) {
  const int64_t d = spec.model.width, r = boundary_width(spec), h = residual_hidden(r);
  const std::string prefix = fmt::format("boundary.{}.", boundary);
  switch (spec.boundary.kind) {
    case BoundaryKind::kNone:
      return;
    case BoundaryKind::kIota:
      builder->add(prefix + "up", {d, r});
      return;
    case BoundaryKind::kResidual:
      builder->add(prefix + "decoder_in", {h, r});
      builder->add(prefix + "decoder_out", {d, h});
      return;
    case BoundaryKind::kAnchored: {
      const int64_t a = spec.boundary.anchor_rank;
      builder->add(prefix + "anchor", {spec.model.vocab, a > 0 ? a : d});
      if (a > 0) builder->add(prefix + "anchor_basis", {a, d});
      builder->add(prefix + "decoder", {d, r});
      builder->add(prefix + "gain", {d});
      return;
    }
  }
}

void add_sender(const RunSpec& spec, uint32_t boundary, LayoutBuilder* builder) {
  const int64_t d = spec.model.width, r = boundary_width(spec), h = residual_hidden(r);
  const std::string prefix = fmt::format("boundary.{}.", boundary);
  switch (spec.boundary.kind) {
    case BoundaryKind::kNone:
      return;
    case BoundaryKind::kIota:
      builder->add(prefix + "down", {r, d});
      return;
    case BoundaryKind::kResidual:
      builder->add(prefix + "encoder_in", {h, d});
      builder->add(prefix + "encoder_out", {r, h});
      return;
    case BoundaryKind::kAnchored:
      builder->add(prefix + "encoder", {r, d});
      return;
  }
}

void add_layer(const ModelSpec& model, uint32_t layer, LayoutBuilder* builder) {
  const int64_t d = model.width, f = model.ffn_width;
  const int64_t kv = static_cast<int64_t>(model.kv_heads) * (model.width / model.heads);
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  builder->add(prefix + "input_layernorm.weight", {d});
  builder->add(prefix + "self_attn.q_proj.weight", {d, d});
  builder->add(prefix + "self_attn.k_proj.weight", {kv, d});
  builder->add(prefix + "self_attn.v_proj.weight", {kv, d});
  builder->add(prefix + "self_attn.o_proj.weight", {d, d});
  builder->add(prefix + "post_attention_layernorm.weight", {d});
  builder->add(prefix + "mlp.gate_proj.weight", {f, d});
  builder->add(prefix + "mlp.up_proj.weight", {f, d});
  builder->add(prefix + "mlp.down_proj.weight", {d, f});
}

}  // namespace

int64_t boundary_width(const RunSpec& spec) {
  return spec.boundary.kind == BoundaryKind::kNone ? spec.model.width : spec.boundary.rank;
}

std::vector<TensorLayout> stage_layout(const RunSpec& spec, StageIndex stage) {
  TESSERA_CHECK(stage < spec.pipeline.stages);
  const int64_t d = spec.model.width, vocab = spec.model.vocab;
  LayoutBuilder builder;
  if (stage == 0) {
    builder.add("model.embed_tokens.weight", {vocab, d});
  } else {
    add_receiver(spec, stage - 1, &builder);
  }
  const LayerRange layers = layers_of(spec, stage);
  for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
    add_layer(spec.model, layer, &builder);
  }
  if (stage + 1 < spec.pipeline.stages) {
    add_sender(spec, stage, &builder);
  } else {
    builder.add("model.norm.weight", {d});
    builder.add("lm_head.weight", {vocab, d});
  }
  return builder.take();
}

uint64_t stage_value_count(const RunSpec& spec, StageIndex stage) {
  const std::vector<TensorLayout> layout = stage_layout(spec, stage);
  return layout.empty() ? 0 : layout.back().offset + layout.back().count;
}

bool is_for_muon(const TensorLayout& tensor) { return tensor.shape.size() > 1 && tensor.name.starts_with(kLayers); }

std::string unit_of(const TensorLayout& tensor) {
  if (tensor.name.starts_with(kLayers)) {
    const size_t end = tensor.name.find('.', kLayers.size());
    const std::string_view part = std::string_view(tensor.name).substr(end + 1);
    const bool attends = part.starts_with("input_layernorm") || part.starts_with("self_attn");
    return fmt::format("layer {} {}", tensor.name.substr(kLayers.size(), end - kLayers.size()),
                       attends ? "attention" : "feed-forward");
  }
  for (const char* end : {".down", ".encoder_in", ".encoder_out", ".encoder", "model.norm.weight", "lm_head.weight"}) {
    if (tensor.name.ends_with(end)) return "sender";
  }
  return "receiver";
}

}  // namespace tessera::core
