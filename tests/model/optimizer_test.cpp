// The optimizers over a stage's flat vectors: AdamW against torch's, what a gradient that is not
// finite does, and that a restored optimizer continues to the bit.
#include <cmath>

#include "model/muon.h"
#include "model/optimizer_checks.h"

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

TEST(Optimizer, DropsAGradientThatIsNotFinite) {
  for (const OptimizerKind kind : kOptimizers) expect_drops_a_bad_gradient(kind, torch::kCPU);
}

TEST(Optimizer, RestoredContinuesToTheBit) {
  for (const OptimizerKind kind : kOptimizers) {
    for (const uint64_t age : {1, 5, 40}) expect_restored_continues(kind, torch::kCPU, age);
  }
}

TEST(Optimizer, ARunIsRepeatedToTheBit) {
  for (const OptimizerKind kind : kOptimizers) expect_repeats(kind, torch::kCPU);
}

// Deep in a run NAdam's product of momenta is a number that a newcomer must find again: at betas
// near 1 it is not zero by then, and the warm-up is over or not.
TEST(Optimizer, NadamFindsItsProductOfMomentaAgain) {
  const Stage stage(OptimizerKind::kNAdam);
  for (const double beta1 : {0.0, 0.9, 0.999999}) {
    for (const double decay : {0.0, 0.004, 0.05, 1.0}) {
      core::TrainingSpec training = stage.spec.training;
      training.beta1 = beta1;
      training.nadam_momentum_decay = decay;
      Flat flats[2];
      for (const int late : {0, 1}) {
        const auto optimizer = make_optimizer(training, stage.layout, torch::kCPU);
        flats[late] = stage.start(torch::kCPU);
        const torch::Tensor zero = torch::zeros({stage.count});
        for (const uint64_t start : {uint64_t{899}, uint64_t{900}}) {
          if (late == 1 && start == 899) continue;
          optimizer->restore(zero, zero, start);
          flats[late] = stage.start(torch::kCPU);
          value_of(optimizer->step(flats[late].masters, stage.gradient(1, torch::kCPU), 1, 1e-3,
                                   flats[late].weights));
        }
      }
      EXPECT_TRUE(torch::equal(flats[0].masters, flats[1].masters)) << beta1 << " " << decay;
    }
  }
}

// Embedding-like tensors, boundary matrices and vectors move as under AdamW, the layers' matrices
// do not, and have no second moment.
TEST(Optimizer, MuonIsForTheMatricesOfTheLayers) {
  const Stage muon_stage(OptimizerKind::kMuon), adam_stage(OptimizerKind::kAdamW);
  Flat muon_flat = muon_stage.start(torch::kCPU), adam_flat = adam_stage.start(torch::kCPU);
  const auto muon = make_optimizer(muon_stage.spec.training, muon_stage.layout, torch::kCPU);
  const auto adam = make_optimizer(adam_stage.spec.training, adam_stage.layout, torch::kCPU);
  const torch::Tensor gradient = muon_stage.gradient(1, torch::kCPU);
  value_of(muon->step(muon_flat.masters, gradient, 1, 1e-3, muon_flat.weights));
  value_of(adam->step(adam_flat.masters, gradient, 1, 1e-3, adam_flat.weights));
  int for_muon = 0;
  for (const ports::TensorLayout& tensor : muon_stage.layout) {
    const auto part = [&](const torch::Tensor& flat) {
      return flat.narrow(0, static_cast<int64_t>(tensor.offset),
                         static_cast<int64_t>(tensor.count));
    };
    const bool hidden = tensor.name.ends_with("_proj.weight");
    for_muon += hidden ? 1 : 0;
    EXPECT_EQ(torch::equal(part(muon_flat.masters), part(adam_flat.masters)), !hidden)
        << tensor.name;
    EXPECT_EQ(part(muon->second_moment()).count_nonzero().item<int64_t>() == 0, hidden)
        << tensor.name;
  }
  EXPECT_EQ(for_muon, 7 * 1);  // the middle of three stages of four layers has one
  EXPECT_TRUE(torch::equal(muon_flat.weights, muon_flat.masters));
}

// Singular values near 1, vectors kept: what comes out times the transposed input is symmetric and
// positive.
TEST(NewtonSchulz, MakesMatricesNearlyOrthogonal) {
  torch::manual_seed(2);
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{24, 24}, {16, 40}, {40, 16}, {1, 9}, {9, 1}}) {
    const torch::Tensor start = torch::randn({3, rows, columns});
    const torch::Tensor result = newton_schulz(start.clone());
    ASSERT_EQ(result.sizes(), start.sizes());
    EXPECT_TRUE(result.is_contiguous());
    const auto [u, s, v] = torch::linalg_svd(start, /*full_matrices=*/false);
    const torch::Tensor inside =
        torch::matmul(torch::matmul(u.transpose(1, 2), result), v.transpose(1, 2));
    const torch::Tensor values = inside.diagonal(0, 1, 2);
    EXPECT_GT((values * (s > 0.05 * s.amax())).amax().item<double>(), 0.6);
    EXPECT_LT(values.amax().item<double>(), 1.3);
    EXPECT_LT((inside - torch::diag_embed(values)).abs().amax().item<double>(), 2e-3)
        << rows << " " << columns;
  }
  EXPECT_EQ(newton_schulz(torch::zeros({2, 4, 5})).abs().amax().item<double>(), 0);
}

// The result must not depend on how many threads share the work.
TEST(Optimizer, ThreadsDoNotChangeABit) {
  const int threads = torch::get_num_threads();
  const std::vector<ports::TensorLayout> layout = {{"vector", {1001}, 0, 1001},
                                                   {"matrix", {700, 1000}, 1001, 700000}};
  for (const OptimizerKind kind : {OptimizerKind::kAdamW, OptimizerKind::kNAdam}) {
    const Stage stage(kind);
    std::vector<torch::Tensor> results;
    for (const int count : {1, 2, 3}) {
      torch::set_num_threads(count);
      const auto optimizer = make_optimizer(stage.spec.training, layout, torch::kCPU);
      torch::manual_seed(5);
      const torch::Tensor masters = torch::randn({701001}), gradient = torch::randn({701001});
      value_of(optimizer->step(masters, gradient, 3, 1e-2, torch::empty_like(masters)));
      results.push_back(masters);
    }
    EXPECT_TRUE(torch::equal(results[0], results[1]));
    EXPECT_TRUE(torch::equal(results[0], results[2]));
  }
  torch::set_num_threads(threads);
}

}  // namespace
}  // namespace tessera::model
