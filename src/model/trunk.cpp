#include "model/trunk.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <utility>

namespace tessera::model {

void GradientSink::begin(size_t unit) {
  if (wanted()) targets_->begin(unit);
}

void GradientSink::end(size_t unit) {
  if (!wanted()) return;
  if (deferred_.empty()) return targets_->end(unit);
  defer([this, unit] { targets_->end(unit); });
}

void GradientSink::flush() {
  // One by one, so that each piece of work frees what it held.
  for (std::function<void()>& work : deferred_) std::exchange(work, nullptr)();
  deferred_.clear();
}

Trunk::Trunk(const core::RunSpec& spec, const at::Device& device, at::ScalarType type,
             bool deterministic)
    : epsilon_(spec.model.norm_epsilon),
      heads_(make_heads(spec.model, spec.training.microbatch_size, device)),
      attention_(choose_attention(heads_, device, type, deterministic)),
      product_(device, /*tune=*/!deterministic) {}

at::Tensor Trunk::layer_forward(const LayerWeights& weights, const at::Tensor& x,
                                LayerState* state) {
  const int64_t rows = x.size(0);
  const auto make = [&](int64_t width) { return at::empty({rows, width}, x.options()); };
  LayerState kept;
  kept.x = x;
  kept.input_norm = norm_forward(x, weights.input_norm, epsilon_);
  kept.packed = make(weights.query_key_value.size(0));
  product_.forward(kept.packed, kept.input_norm.y, weights.query_key_value);
  if (state == nullptr) kept.input_norm = {};
  rotate_in_place(heads_, kept.packed);
  kept.attention = attention_forward(attention_, heads_, kept.packed, state != nullptr);
  if (state == nullptr) kept.packed.reset();
  kept.middle = at::empty_like(x);
  product_.forward(kept.middle, kept.attention.out, weights.attention_out, x);
  if (state == nullptr) kept.attention = {};
  kept.post_norm = norm_forward(kept.middle, weights.post_norm, epsilon_);
  kept.gate_up = make(weights.gate_up.size(0));
  product_.forward(kept.gate_up, kept.post_norm.y, weights.gate_up);
  if (state == nullptr) kept.post_norm = {};
  const at::Tensor fed = swiglu_forward(kept.gate_up);
  if (state == nullptr) kept.gate_up.reset();
  at::Tensor out = at::empty_like(x);
  product_.forward(out, fed, weights.down, kept.middle);
  if (state != nullptr) *state = std::move(kept);
  return out;
}

at::Tensor Trunk::forward(const StageWeights& weights, at::Tensor x, bool recompute,
                          std::vector<LayerState>* states) {
  for (size_t index = 0; index < weights.layers.size(); ++index) {
    weights.begin(index + 1, PassDirection::kForward);
    LayerState state;
    state.x = x;
    x = layer_forward(weights.layers[index], x, states == nullptr || recompute ? nullptr : &state);
    if (states != nullptr) states->push_back(std::move(state));
  }
  return x;
}

void Trunk::weight_gradient(const at::Tensor& weight, const at::Tensor& y, const at::Tensor& x,
                            bool defer, GradientSink* sink) {
  if (!sink->wanted()) return;
  // The place is asked for when it is written: until then a deferred gradient takes no memory.
  auto work = [this, sink, weight, y, x] {
    const GradientTarget target = sink->target(weight);
    product_.weight_gradient(target.tensor, y, x, target.accumulate);
  };
  if (!defer) return work();
  sink->defer(std::move(work));
}

at::Tensor Trunk::layer_backward(const LayerWeights& weights, LayerState state,
                                 const at::Tensor& dy, bool defer, GradientSink* sink) {
  // SwiGLU's output is the widest thing after its input: it is made again on the way, in the place
  // of its gradient, and used at once, which frees it before the next layer.
  at::Tensor fed = at::empty({dy.size(0), weights.down.size(1)}, dy.options());
  product_.input_gradient(fed, dy, weights.down);
  swiglu_backward(fed, state.gate_up);
  weight_gradient(weights.down, dy, fed, /*defer=*/false, sink);
  fed.reset();
  const at::Tensor dmiddle = at::empty_like(dy);
  product_.input_gradient(dmiddle, state.gate_up, weights.gate_up);
  weight_gradient(weights.gate_up, state.gate_up, state.post_norm.y, defer, sink);
  state.gate_up.reset();
  norm_backward(dmiddle, state.post_norm, state.middle, weights.post_norm, dy,
                sink->target(weights.post_norm));
  state.post_norm = {};
  state.middle.reset();

  const at::Tensor dx = at::empty_like(dy);  // of the attention's output first
  product_.input_gradient(dx, dmiddle, weights.attention_out);
  weight_gradient(weights.attention_out, dmiddle, state.attention.out, defer, sink);
  {
    const AttentionGradient gradient =
        attention_backward(attention_, heads_, state.packed, state.attention, dx);
    state.attention = {};
    pack_gradient(heads_, gradient.query, gradient.key, gradient.value, state.packed);
  }
  product_.input_gradient(dx, state.packed, weights.query_key_value);
  weight_gradient(weights.query_key_value, state.packed, state.input_norm.y, defer, sink);
  norm_backward(dx, state.input_norm, state.x, weights.input_norm, dmiddle,
                sink->target(weights.input_norm));
  return dx;
}

at::Tensor Trunk::backward(const StageWeights& weights, std::vector<LayerState>* states,
                           at::Tensor dy, bool recompute, bool defer, GradientSink* sink) {
  const std::vector<LayerWeights>& layers = weights.layers;
  TORCH_CHECK(states->size() == layers.size(), "layers and states differ in number");
  for (size_t index = layers.size(); index-- > 0;) {
    weights.begin(index + 1, PassDirection::kBackward);
    sink->begin(index + 1);
    LayerState state = std::move(states->back());
    states->pop_back();
    if (recompute) layer_forward(layers[index], at::Tensor(state.x), &state);
    dy = layer_backward(layers[index], std::move(state), dy, defer, sink);
    sink->end(index + 1);
  }
  return dy;
}

}  // namespace tessera::model
