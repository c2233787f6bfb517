// The optimizers over a stage's flat vectors: AdamW against torch's, what a gradient that is not
// finite does, and that a restored optimizer continues to the bit.
#include "model/optimizer.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "model/pipeline.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

// Against torch::optim::AdamW with its own clipping, on gradients of very different sizes; within
// 1e-6 relative per value.
TEST(AdamW, IsTorchs) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  core::TrainingSpec training = spec.training;
  training.clip_norm = 2;
  const std::vector<ports::TensorLayout> layout = stage_layout(spec, 1);
  torch::manual_seed(5);
  const torch::Tensor masters = torch::randn({static_cast<int64_t>(value_count(layout))});
  const torch::Tensor start = masters.clone();
  const auto optimizer = make_optimizer(training, layout, torch::kCPU);
  const torch::Tensor weights = torch::empty_like(masters);

  std::vector<torch::Tensor> matrices, vectors, all;
  for (const ports::TensorLayout& tensor : layout) {
    const torch::Tensor part =
        start.narrow(0, static_cast<int64_t>(tensor.offset), static_cast<int64_t>(tensor.count))
            .clone();
    all.push_back(part.view(tensor.shape).requires_grad_(true));
    (tensor.shape.size() > 1 ? matrices : vectors).push_back(all.back());
  }
  const auto options = [&](double decay) {
    return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(1e-3)
                                                            .betas({training.beta1, training.beta2})
                                                            .eps(training.epsilon)
                                                            .weight_decay(decay));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(matrices, options(training.weight_decay));
  groups.emplace_back(vectors, options(0));
  torch::optim::AdamW expected(groups);

  for (int step = 0; step < 12; ++step) {
    const double learning_rate = 1e-3 * (step + 1),
                 size = std::pow(10.0, step % 4 - 4);  // clipped and not
    const torch::Tensor gradient = size * torch::randn_like(masters);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i].mutable_grad() =
          gradient.narrow(0, static_cast<int64_t>(layout[i].offset), all[i].numel())
              .clone()
              .view(all[i].sizes());
    }
    const double norm = torch::nn::utils::clip_grad_norm_(all, training.clip_norm);
    for (auto& group : expected.param_groups()) {
      static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate);
    }
    expected.step();
    const double measured =
        value_of(optimizer->step(masters, gradient * 5, 5, learning_rate, weights));
    EXPECT_TRUE(torch::equal(weights, masters));
    EXPECT_NEAR(measured, norm, 1e-5 * norm);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    const torch::Tensor part =
        masters.narrow(0, static_cast<int64_t>(layout[i].offset), all[i].numel());
    EXPECT_TRUE(torch::allclose(part.view(all[i].sizes()), all[i].detach(), 1e-6, 1e-6))
        << layout[i].name;
  }
  EXPECT_EQ(optimizer->steps(), 12u);
}

struct Flat {
  torch::Tensor masters, weights;
};

// A stage with boundary matrices, norms, a gain and layers: segments of many lengths.
struct Stage {
  Stage() : layout(stage_layout(spec, 1)), count(static_cast<int64_t>(value_count(layout))) {
    torch::manual_seed(11);
  }
  Flat start() const {
    torch::manual_seed(12);
    const torch::Tensor masters = 0.1 * torch::randn({count});
    return {masters, torch::empty_like(masters)};
  }
  torch::Tensor gradient(uint64_t step) const {
    torch::manual_seed(100 + step);
    return torch::randn({count});
  }
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  const std::vector<ports::TensorLayout> layout;
  const int64_t count;
};

TEST(Optimizer, DropsAGradientThatIsNotFinite) {
  const Stage stage;
  const auto optimizer = make_optimizer(stage.spec.training, stage.layout, torch::kCPU);
  const Flat flat = stage.start();
  value_of(optimizer->step(flat.masters, stage.gradient(1), 2, 1e-2, flat.weights));
  const torch::Tensor masters = flat.masters.clone(), first = optimizer->first_moment().clone(),
                      second = optimizer->second_moment().clone();
  for (const double bad :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(), 1e25}) {
    const torch::Tensor gradient = stage.gradient(2);
    gradient[stage.count - 1] = bad;
    flat.weights.fill_(7);
    const Status status = optimizer->step(flat.masters, gradient, 1, 1e-2, flat.weights).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << bad;
    EXPECT_TRUE(torch::equal(flat.masters, masters));
    EXPECT_TRUE(torch::equal(flat.weights, masters));
    EXPECT_TRUE(torch::equal(optimizer->first_moment(), first));
    EXPECT_TRUE(torch::equal(optimizer->second_moment(), second));
    EXPECT_EQ(optimizer->steps(), 1u);
  }
  // The next good gradient goes on as if nothing had been.
  const auto other = make_optimizer(stage.spec.training, stage.layout, torch::kCPU);
  const Flat expected = stage.start();
  for (uint64_t step : {1, 2}) {
    value_of(other->step(expected.masters, stage.gradient(step), 2, 1e-2, expected.weights));
  }
  value_of(optimizer->step(flat.masters, stage.gradient(2), 2, 1e-2, flat.weights));
  EXPECT_TRUE(torch::equal(flat.masters, expected.masters));
}

TEST(Optimizer, RestoredContinuesToTheBit) {
  const Stage stage;
  const auto optimizer = make_optimizer(stage.spec.training, stage.layout, torch::kCPU);
  const Flat flat = stage.start();
  for (uint64_t step = 0; step < 5; ++step) {
    value_of(optimizer->step(flat.masters, stage.gradient(step), 1, 1e-2, flat.weights));
  }
  const auto resumed = make_optimizer(stage.spec.training, stage.layout, torch::kCPU);
  resumed->restore(optimizer->first_moment().clone(), optimizer->second_moment().clone(),
                   optimizer->steps());
  const Flat copy{flat.masters.clone(), torch::empty_like(flat.masters)};
  for (uint64_t step = 5; step < 9; ++step) {
    const torch::Tensor gradient = stage.gradient(step);
    EXPECT_EQ(value_of(optimizer->step(flat.masters, gradient, 1, 1e-2, flat.weights)),
              value_of(resumed->step(copy.masters, gradient, 1, 1e-2, copy.weights)));
  }
  EXPECT_TRUE(torch::equal(flat.masters, copy.masters));
  EXPECT_TRUE(torch::equal(flat.weights, copy.weights));
  EXPECT_TRUE(torch::equal(optimizer->first_moment(), resumed->first_moment()));
  EXPECT_TRUE(torch::equal(optimizer->second_moment(), resumed->second_moment()));
}

// The result must not depend on how many threads share the work.
TEST(Optimizer, ThreadsDoNotChangeABit) {
  const int threads = torch::get_num_threads();
  const std::vector<ports::TensorLayout> layout = {{"vector", {1001}, 0, 1001},
                                                   {"matrix", {700, 1000}, 1001, 700000}};
  const Stage stage;
  std::vector<torch::Tensor> results;
  for (const int count : {1, 2, 3}) {
    torch::set_num_threads(count);
    const auto optimizer = make_optimizer(stage.spec.training, layout, torch::kCPU);
    torch::manual_seed(5);
    const torch::Tensor masters = torch::randn({701001}), gradient = torch::randn({701001});
    value_of(optimizer->step(masters, gradient, 3, 1e-2, torch::empty_like(masters)));
    results.push_back(masters);
  }
  torch::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(results[0], results[1]));
  EXPECT_TRUE(torch::equal(results[0], results[2]));
}

}  // namespace
}  // namespace tessera::model
