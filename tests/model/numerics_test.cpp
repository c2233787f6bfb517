// The pieces by themselves, in double where derivatives are taken: gradients against differences of
// function values, the fused loss against the plain one.
#include <torch/torch.h>

#include <cmath>
#include <string>

#include "model/blocks.h"
#include "model/pipeline.h"
#include "model/stage_function.h"

namespace tessera::model {
namespace {

constexpr double kDifferenceStep = 1e-6;
// How far iota's ReLU is kept from its kink, which the difference must not straddle.
constexpr double kKinkDistance = 1e-4;

// A stage as a function of its flat weights and its input, to a number: the loss at the tail, else
// a fixed linear combination of what it sends.
class ScalarStage {
 public:
  ScalarStage(const RunSpec& spec, StageIndex stage)
      : spec_(spec),
        stage_(stage),
        function_(spec, stage, torch::TensorOptions().dtype(torch::kDouble)),
        tokens_(torch::randint(static_cast<int64_t>(spec.model.vocab),
                               {spec.training.microbatch_size, spec.model.context + 1},
                               torch::kLong)) {
    const std::vector<float> initial = initial_values(spec, stage);
    const torch::Tensor values = torch::tensor(torch::ArrayRef<float>(initial), torch::kDouble);
    // Away from the start: there, last layers are near zero and the gain is the same everywhere.
    flat_ = values + 0.1 * torch::randn_like(values);
    const std::vector<int64_t> shape{spec.training.microbatch_size, spec.model.context,
                                     boundary_width(spec)};
    combination_ = torch::randn(shape, torch::kDouble);
    if (stage == 0) return;
    const torch::Tensor up = make_stage_weights(spec, stage, flat_, 0, false).receiver.up;
    do {
      input_ = torch::randn(shape, torch::kDouble);
    } while (up.defined() &&
             torch::matmul(input_, up.t()).abs().min().item<double>() < kKinkDistance);
  }

  torch::Tensor evaluate(const StageWeights& weights, const torch::Tensor& input) const {
    const int64_t length = spec_.model.context;
    const StageOutput output = function_.run(weights, tokens_.narrow(1, 0, length), input);
    if (function_.is_tail())
      return function_.loss(weights, output.value, tokens_.narrow(1, 1, length));
    return (output.value * combination_).sum();
  }
  double value(const torch::Tensor& flat, const torch::Tensor& input) const {
    const torch::NoGradGuard no_graph;
    return evaluate(make_stage_weights(spec_, stage_, flat, 0, false), input).item<double>();
  }

  // Of every leaf and of the input: the derivative along a random direction by autograd and by
  // central differences.
  void check() const {
    const StageWeights weights = make_stage_weights(spec_, stage_, flat_, 0, true);
    const torch::Tensor input =
        input_.defined() ? input_.clone().requires_grad_(true) : torch::Tensor();
    std::vector<torch::Tensor> variables;
    for (const StageWeights::Leaf& leaf : weights.leaves) variables.push_back(leaf.tensor);
    if (input.defined()) variables.push_back(input);
    const std::vector<torch::Tensor> gradients =
        torch::autograd::grad({evaluate(weights, input)}, variables);

    for (size_t i = 0; i < weights.leaves.size(); ++i) {
      const torch::Tensor direction = torch::randn_like(gradients[i]);
      torch::Tensor change = torch::zeros_like(flat_);
      change.narrow(0, static_cast<int64_t>(weights.leaves[i].offset), direction.numel())
          .copy_(direction.reshape({-1}));
      expect_derivative(value(flat_ + kDifferenceStep * change, input_),
                        value(flat_ - kDifferenceStep * change, input_), gradients[i], direction,
                        "leaf " + std::to_string(i));
    }
    if (!input.defined()) return;
    const torch::Tensor direction = torch::randn_like(input_);
    expect_derivative(value(flat_, input_ + kDifferenceStep * direction),
                      value(flat_, input_ - kDifferenceStep * direction), gradients.back(),
                      direction, "input");
  }

 private:
  static void expect_derivative(double above, double below, const torch::Tensor& gradient,
                                const torch::Tensor& direction, const std::string& what) {
    const double expected = (above - below) / (2 * kDifferenceStep);
    const double measured = (gradient * direction).sum().item<double>();
    // Against the gradient's size, not the derivative's: a direction may happen to be nearly level.
    const double size = gradient.norm().item<double>();
    ASSERT_GT(size, 0) << what;
    EXPECT_LT(std::abs(measured - expected), 1e-6 * size + 1e-9)
        << what << ": " << measured << " " << expected;
  }

  const RunSpec spec_;
  const StageIndex stage_;
  const StageFunction function_;
  torch::Tensor tokens_, flat_, combination_, input_;
};

TEST(Gradients, AgreeWithDifferences) {
  struct Case {
    BoundaryKind kind;
    uint32_t stages;
    uint32_t anchor_rank;
  };
  for (const Case& which :
       {Case{BoundaryKind::kNone, 3, 0}, Case{BoundaryKind::kIota, 3, 0},
        Case{BoundaryKind::kIota, 4, 0},  // one layer a stage: it receives and sends
        Case{BoundaryKind::kResidual, 3, 0}, Case{BoundaryKind::kAnchored, 3, 0},
        Case{BoundaryKind::kAnchored, 3, 6}}) {
    RunSpec spec = tiny_spec(which.kind, Codec::kFp32, which.stages);
    spec.boundary.anchor_rank = which.anchor_rank;
    for (StageIndex stage = 0; stage < which.stages; ++stage) {
      SCOPED_TRACE(std::string(core::name_of(which.kind)) + " stage " + std::to_string(stage) +
                   " of " + std::to_string(which.stages));
      torch::manual_seed(17 + stage);
      ScalarStage(spec, stage).check();
    }
  }
}

// More rows than one piece holds, the last piece a part of one.
TEST(LinearCrossEntropy, IsThePlainLossWithItsGradients) {
  torch::manual_seed(3);
  const torch::Tensor hidden = torch::randn({2500, 16}, torch::kDouble).requires_grad_(true);
  const torch::Tensor head = torch::randn({37, 16}, torch::kDouble).requires_grad_(true);
  const torch::Tensor targets = torch::randint(37, {2500}, torch::kLong);
  const torch::Tensor expected =
      torch::nn::functional::cross_entropy(torch::matmul(hidden, head.t()), targets);
  const std::vector<torch::Tensor> expected_gradients =
      torch::autograd::grad({expected}, {hidden, head});

  const torch::Tensor measured = linear_cross_entropy(hidden, head, targets);
  EXPECT_NEAR(measured.item<double>(), expected.item<double>(), 1e-12);
  const std::vector<torch::Tensor> gradients =
      torch::autograd::grad({measured * 3}, {hidden, head});
  for (int i = 0; i < 2; ++i) {
    EXPECT_LT((gradients[i] - 3 * expected_gradients[i]).abs().max().item<double>(), 1e-14);
  }
  const torch::NoGradGuard no_graph;
  EXPECT_NEAR(linear_cross_entropy(hidden, head, targets).item<double>(), expected.item<double>(),
              1e-12);

  const torch::Tensor rough =
      linear_cross_entropy(hidden.to(torch::kBFloat16), head.to(torch::kBFloat16), targets);
  EXPECT_EQ(rough.scalar_type(), torch::kFloat);
  EXPECT_NEAR(rough.item<double>(), expected.item<double>(), 0.02 * expected.item<double>());
}

TEST(RmsNorm, HasTheEpsilonUnderTheRoot) {
  const torch::Tensor x = torch::tensor({{3.0, 4.0}, {1e-4, 0.0}}, torch::kDouble);
  const torch::Tensor y = rms_norm(x, {}, 1e-5);
  EXPECT_NEAR(y[0][0].item<double>(), 3 / std::sqrt(12.5 + 1e-5), 1e-12);
  EXPECT_NEAR(y[1][0].item<double>(), 1e-4 / std::sqrt(0.5e-8 + 1e-5), 1e-12);
}

}  // namespace
}  // namespace tessera::model
