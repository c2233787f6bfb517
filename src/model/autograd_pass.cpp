// A stage by autograd over StageFunction.
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <utility>
#include <vector>

#include "model/stage_pass.h"

namespace tessera::model {
namespace {

class AutogradState final : public PassState {
 public:
  std::shared_ptr<const StageWeights> weights;
  at::Tensor input;   // leaf [B, T, r]; undefined at the head
  at::Tensor output;  // the boundary tensor, or the loss
};

class AutogradPass final : public StagePass {
 public:
  AutogradPass(const core::RunSpec& spec, StageIndex stage, const at::TensorOptions& compute)
      : function_(spec, stage, compute) {}

  PassOutput forward(const PassInput& input) override {
    const c10::AutoGradMode with_graph(true);
    auto state = std::make_unique<AutogradState>();
    state->weights = input.weights;
    if (!function_.is_head()) state->input = input.boundary.detach().requires_grad_(true);
    const int64_t context = input.ids.size(1) - 1;
    const StageOutput output =
        function_.run(*input.weights, input.ids.narrow(1, 0, context), state->input);
    PassOutput result;
    if (function_.is_tail()) {
      state->output =
          function_.loss(*input.weights, output.value, input.ids.narrow(1, 1, context));
      result.loss = state->output.detach();
    } else {
      state->output = output.value;
      result.wire = output.wire;
    }
    result.state = std::move(state);
    return result;
  }

  at::Tensor backward(std::unique_ptr<PassState> held, const at::Tensor& outer,
                      GradientSink* sink) override {
    const std::unique_ptr<AutogradState> state(static_cast<AutogradState*>(held.release()));
    std::vector<at::Tensor> inputs;
    if (!function_.is_head()) inputs.push_back(state->input);
    if (sink->wanted()) {
      for (const StageWeights::Leaf& leaf : state->weights->leaves) inputs.push_back(leaf.tensor);
    }
    if (inputs.empty()) return {};
    const at::Tensor gradient =
        outer.defined() ? outer : at::ones({}, state->output.options().requires_grad(false));
    std::vector<at::Tensor> gradients =
        torch::autograd::grad({state->output}, inputs, {gradient});
    const c10::NoGradGuard no_graph;
    at::Tensor result;
    if (!function_.is_head()) {
      result = gradients.front().contiguous();
      gradients.erase(gradients.begin());
    }
    if (!sink->wanted()) return result;
    for (size_t i = 0; i < gradients.size(); ++i) {
      sink->target(state->weights->leaves[i].tensor).take(gradients[i]);
    }
    return result;
  }

 private:
  const StageFunction function_;
};

}  // namespace

std::unique_ptr<StagePass> make_autograd_pass(const core::RunSpec& spec, StageIndex stage,
                                              const at::TensorOptions& compute) {
  return std::make_unique<AutogradPass>(spec, stage, compute);
}

}  // namespace tessera::model
