// The transformer layers of a stage, forward and backward written by hand: no autograd graph, no
// casts, weight gradients added up in fp32 by the matrix products themselves.
// reference: src/model/stage_function.cpp, which the tests compare it with.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "model/attention.h"
#include "model/blocks.h"
#include "model/matrix_product.h"
#include "model/stage_function.h"
#include "model/stage_ops.h"
#include "tessera/core/run_spec.h"

namespace tessera::model {

// Where a stage's weight gradients go. Units as in WeightSource.
class GradientTargets {
 public:
  virtual ~GradientTargets() = default;
  // The unit's gradients are about to be computed, ..
  virtual void begin(size_t unit) = 0;
  // .. and all enqueued.
  virtual void end(size_t unit) = 0;
  // Of a weight that is a leaf of StageWeights. Deferred work asks when it runs, after other units
  // were begun. Overwritten where the answer does not say to accumulate; what sums over several
  // calls must then clear it first.
  virtual GradientTarget target(const at::Tensor& weight) = 0;
};

// The weight gradients of one backward pass.
class GradientSink {
 public:
  explicit GradientSink(GradientTargets* targets) : targets_(targets) {}
  // Nothing is wanted but the input's gradient.
  GradientSink() = default;

  bool wanted() const { return targets_ != nullptr; }
  GradientTarget target(const at::Tensor& weight) const {
    return wanted() ? targets_->target(weight) : GradientTarget();
  }

  // Around the work, deferred or not, on one unit's gradients.
  void begin(size_t unit);
  void end(size_t unit);

  // Work that can wait until the input's gradient is on its way; run by flush() in order.
  void defer(std::function<void()> work) { deferred_.push_back(std::move(work)); }
  void flush();

 private:
  GradientTargets* targets_ = nullptr;
  std::vector<std::function<void()>> deferred_;
};

// What the backward pass needs of one layer. Only `x` with recomputation.
struct LayerState {
  at::Tensor x;           // [N, d], the layer's input
  NormResult input_norm;  // without y, which is `input`
  Factor input;
  at::Tensor packed;  // rotated q | k | v
  AttentionState attention;
  Factor attended;
  at::Tensor middle;     // x + attention
  NormResult post_norm;  // without y, which is `middle_input`
  Factor middle_input;
  at::Tensor gate_up;
  Factor fed;  // swiglu_forward(gate_up), where products take codes
};

class Trunk {
 public:
  Trunk(const core::RunSpec& spec, const at::Device& device, at::ScalarType type,
        bool deterministic);

  const Heads& heads() const { return heads_; }
  MatrixProduct& product() { return product_; }

  // x [N, d] -> [N, d]. `states`: one a layer is appended; null: nothing is kept.
  // `recompute`: states keep the layers' inputs only.
  at::Tensor forward(const StageWeights& weights, at::Tensor x, bool recompute,
                     std::vector<LayerState>* states);
  // dy [N, d] -> dx [N, d]; dy may be overwritten. Spends the states. Weight gradients go to `sink`, at once or
  // deferred.
  at::Tensor backward(const StageWeights& weights, std::vector<LayerState>* states,
                      at::Tensor dy, bool recompute, bool defer, GradientSink* sink);

 private:
  // `after`: where the pass goes from this layer.
  at::Tensor layer_forward(const StageWeights& stage, size_t index, const at::Tensor& x,
                           PassDirection after, LayerState* state);
  at::Tensor layer_backward(const StageWeights& stage, size_t index, LayerState state,
                            const at::Tensor& dy, bool defer, GradientSink* sink);
  void weight_gradient(const at::Tensor& weight, const Factor& y, const Factor& x, bool defer,
                       GradientSink* sink);
  // What a pass reads of an activation for its product, and keeps for its weight's gradient.
  Factor activation(const at::Tensor& values, bool keep) const {
    return product_.factor(values, FactorKind::kForward, /*rows=*/true, /*columns=*/keep);
  }
  Factor gradient(const at::Tensor& values, const GradientSink& sink) const {
    return product_.factor(values, FactorKind::kGradient, /*rows=*/true, /*columns=*/sink.wanted());
  }
  Factor factor_of(const StageWeights& stage, const at::Tensor& weight) const;

  const double epsilon_;
  const Heads heads_;
  const AttentionKind attention_;
  MatrixProduct product_;
};

}  // namespace tessera::model
