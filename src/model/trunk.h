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

// Where each unit's gradients go, for a sink that is not one flat tensor. Units as in WeightSource.
class GradientUnits {
 public:
  virtual ~GradientUnits() = default;
  struct Place {
    at::Tensor flat;        // fp32
    int64_t first = 0;      // flat[0] is of the weight at this offset of its storage
    bool accumulate = false;
  };
  // The unit's gradients are about to be computed, ..
  virtual Place begin(size_t unit) = 0;
  // .. and all enqueued.
  virtual void end(size_t unit) = 0;
};

// The flat fp32 gradient of a stage. Weights are views of a flat tensor of the same order, so a
// weight's place tells its gradient's.
class GradientSink {
 public:
  // `accumulate`: add to what `flat` holds; else every weight's gradient overwrites it, and what
  // sums over several calls must clear its part first.
  GradientSink(at::Tensor flat, bool accumulate)
      : flat_(std::move(flat)), accumulate_(accumulate) {}
  // Each unit's gradients go where `units` says.
  explicit GradientSink(GradientUnits* units) : units_(units) {}
  // Nothing is wanted but the input's gradient.
  GradientSink() = default;

  bool wanted() const { return flat_.defined() || units_ != nullptr; }
  bool accumulates() const { return accumulate_; }
  GradientTarget target(const at::Tensor& weight) const;

  // Around the work, deferred or not, on one unit's gradients.
  void begin(size_t unit);
  void end(size_t unit);

  // Work that can wait until the input's gradient is on its way; run by flush() in order.
  void defer(std::function<void()> work) { deferred_.push_back(std::move(work)); }
  void flush();

 private:
  at::Tensor flat_;
  int64_t first_ = 0;
  bool accumulate_ = false;
  GradientUnits* units_ = nullptr;
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
