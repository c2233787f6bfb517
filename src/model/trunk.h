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
  at::Tensor x;  // [N, d], the layer's input
  NormResult input_norm;
  at::Tensor packed;  // rotated q | k | v
  AttentionState attention;
  at::Tensor middle;  // x + attention
  NormResult post_norm;
  at::Tensor gate_up;
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
  at::Tensor layer_forward(const LayerWeights& weights, const at::Tensor& x, LayerState* state);
  at::Tensor layer_backward(const LayerWeights& weights, LayerState state, const at::Tensor& dy,
                            bool defer, GradientSink* sink);
  void weight_gradient(const at::Tensor& weight, const at::Tensor& y, const at::Tensor& x,
                       bool defer, GradientSink* sink);

  const double epsilon_;
  const Heads heads_;
  const AttentionKind attention_;
  MatrixProduct product_;
};

}  // namespace tessera::model
