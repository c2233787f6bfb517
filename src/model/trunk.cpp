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
      product_(device, /*tune=*/!deterministic,
               spec.training.matrix_products == core::MatrixProducts::kFp8) {}

Factor Trunk::factor_of(const StageWeights& stage, const at::Tensor& weight) const {
  if (!product_.takes_codes()) return {weight, {}, {}, {}};
  std::map<int64_t, Factor>& known = stage.factors->of;
  const auto found = known.find(weight.storage_offset());
  if (found != known.end()) return found->second;
  return known
      .emplace(weight.storage_offset(),
               product_.factor(weight, FactorKind::kForward, /*rows=*/true, /*columns=*/true))
      .first->second;
}

at::Tensor Trunk::layer_forward(const StageWeights& stage, size_t index, const at::Tensor& x,
                                PassDirection after, LayerState* state) {
  const LayerWeights& weights = stage.layers[index];
  const int64_t rows = x.size(0);
  const bool keep = state != nullptr;
  const auto make = [&](int64_t width) { return at::empty({rows, width}, x.options()); };
  LayerState kept;
  kept.x = x;
  stage.begin(StageWeights::attention_unit(index), PassDirection::kForward);
  kept.input_norm = norm_forward(x, weights.input_norm, epsilon_);
  kept.input = activation(std::exchange(kept.input_norm.y, {}), keep);
  kept.packed = make(weights.query_key_value.size(0));
  product_.forward(kept.packed, kept.input, factor_of(stage, weights.query_key_value));
  kept.input.rows.reset();
  if (!keep) kept.input = {};
  rotate_in_place(heads_, kept.packed);
  kept.attention = attention_forward(attention_, heads_, kept.packed, keep);
  if (!keep) kept.packed.reset();
  kept.attended = activation(kept.attention.out, keep);
  kept.middle = at::empty_like(x);
  product_.forward(kept.middle, kept.attended, factor_of(stage, weights.attention_out), x);
  kept.attended.rows.reset();
  if (!keep) kept.attended = {};
  if (!keep) kept.attention = {};
  stage.begin(StageWeights::feed_forward_unit(index), after);
  kept.post_norm = norm_forward(kept.middle, weights.post_norm, epsilon_);
  kept.middle_input = activation(std::exchange(kept.post_norm.y, {}), keep);
  kept.gate_up = make(weights.gate_up.size(0));
  at::Tensor fed =
      product_.forward_swiglu(kept.gate_up, kept.middle_input, factor_of(stage, weights.gate_up));
  kept.middle_input.rows.reset();
  if (!keep) kept.middle_input = {};
  const bool keep_fed = keep && product_.takes_codes();  // a byte a number
  kept.fed = activation(std::exchange(fed, {}), keep_fed);
  if (!keep) kept.gate_up.reset();
  at::Tensor out = at::empty_like(x);
  product_.forward(out, kept.fed, factor_of(stage, weights.down), kept.middle);
  kept.fed.rows.reset();
  if (!keep_fed) kept.fed = {};
  if (keep) *state = std::move(kept);
  return out;
}

at::Tensor Trunk::forward(const StageWeights& weights, at::Tensor x, bool recompute,
                          std::vector<LayerState>* states) {
  for (size_t index = 0; index < weights.layers.size(); ++index) {
    LayerState state;
    state.x = x;
    x = layer_forward(weights, index, x, PassDirection::kForward,
                      states == nullptr || recompute ? nullptr : &state);
    if (states != nullptr) states->push_back(std::move(state));
  }
  return x;
}

void Trunk::weight_gradient(const at::Tensor& weight, const Factor& y, const Factor& x, bool defer,
                            GradientSink* sink) {
  if (!sink->wanted()) return;
  // The place is asked for when it is written: until then a deferred gradient takes no memory.
  auto work = [this, sink, weight, y, x] {
    const GradientTarget target = sink->target(weight);
    product_.weight_gradient(target.tensor, y, x, target.accumulate);
  };
  if (!defer) return work();
  sink->defer(std::move(work));
}

at::Tensor Trunk::layer_backward(const StageWeights& stage, size_t index, LayerState state,
                                 const at::Tensor& dy, bool defer, GradientSink* sink) {
  const LayerWeights& weights = stage.layers[index];
  // The gradient of a product's output; its rows are for the input's gradient, which comes first.
  const auto products = [&](const at::Tensor& input_gradient, const at::Tensor& dout,
                            const at::Tensor& weight) {
    Factor factor = gradient(dout, *sink);
    product_.input_gradient(input_gradient, factor, factor_of(stage, weight));
    factor.rows.reset();
    return factor;
  };
  stage.begin(StageWeights::feed_forward_unit(index), PassDirection::kBackward);
  sink->begin(StageWeights::feed_forward_unit(index));
  // SwiGLU's output is the widest thing after its input: unless there are codes of it, it is made
  // again on the way, and used at once, which frees it before the next layer.
  {
    Factor factor = gradient(dy, *sink);
    const bool has_codes = product_.takes_codes();
    const at::Tensor fed = product_.input_gradient_swiglu(
        state.gate_up, factor, factor_of(stage, weights.down), /*again=*/!has_codes && sink->wanted());
    factor.rows.reset();
    weight_gradient(weights.down, factor,
                    has_codes ? std::exchange(state.fed, {}) : Factor{fed, {}, {}, {}},
                    /*defer=*/false, sink);
  }
  const at::Tensor dmiddle = at::empty_like(dy);
  weight_gradient(weights.gate_up, products(dmiddle, state.gate_up, weights.gate_up),
                  std::exchange(state.middle_input, {}), defer, sink);
  state.gate_up.reset();
  norm_backward(dmiddle, state.post_norm, state.middle, weights.post_norm, dy,
                sink->target(weights.post_norm));
  state.post_norm = {};
  state.middle.reset();
  sink->end(StageWeights::feed_forward_unit(index));

  stage.begin(StageWeights::attention_unit(index), PassDirection::kBackward);
  sink->begin(StageWeights::attention_unit(index));
  const at::Tensor dx = at::empty_like(dy);  // of the attention's output first
  weight_gradient(weights.attention_out, products(dx, dmiddle, weights.attention_out),
                  std::exchange(state.attended, {}), defer, sink);
  {
    const AttentionGradient gradient =
        attention_backward(attention_, heads_, state.packed, state.attention, dx);
    state.attention = {};
    pack_gradient(heads_, gradient.query, gradient.key, gradient.value, state.packed);
  }
  weight_gradient(weights.query_key_value, products(dx, state.packed, weights.query_key_value),
                  std::exchange(state.input, {}), defer, sink);
  norm_backward(dx, state.input_norm, state.x, weights.input_norm, dmiddle,
                sink->target(weights.input_norm));
  sink->end(StageWeights::attention_unit(index));
  return dx;
}

at::Tensor Trunk::backward(const StageWeights& weights, std::vector<LayerState>* states,
                           at::Tensor dy, bool recompute, bool defer, GradientSink* sink) {
  TORCH_CHECK(states->size() == weights.layers.size(), "layers and states differ in number");
  for (size_t index = weights.layers.size(); index-- > 0;) {
    LayerState state = std::move(states->back());
    states->pop_back();
    if (recompute) {
      layer_forward(weights, index, at::Tensor(state.x), PassDirection::kBackward, &state);
    }
    dy = layer_backward(weights, index, std::move(state), dy, defer, sink);
  }
  return dy;
}

}  // namespace tessera::model
