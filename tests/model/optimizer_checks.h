// What every optimizer must do on every device, for the tests on the CPU and on the GPU.
#pragma once

#include <torch/torch.h>

#include <limits>
#include <string>
#include <vector>

#include "model/optimizer.h"
#include "model/pipeline.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {

using core::OptimizerKind;

inline constexpr OptimizerKind kOptimizers[] = {OptimizerKind::kAdamW, OptimizerKind::kNAdam,
                                                OptimizerKind::kMuon};

struct Flat {
  torch::Tensor masters, weights;
};

// A stage with boundary matrices, norms, a gain and layers: segments of many lengths.
struct Stage {
  explicit Stage(OptimizerKind kind)
      : spec(tiny_spec(BoundaryKind::kAnchored, Codec::kFp32)),
        layout(stage_layout(spec, 1)),
        count(static_cast<int64_t>(value_count(layout))) {
    spec.training.optimizer = kind;
  }
  Flat start(const torch::Device& device) const {
    torch::manual_seed(12);
    const torch::Tensor masters = (0.1 * torch::randn({count})).to(device);
    return {masters,
            torch::empty_like(masters, device.is_cuda() ? torch::kBFloat16 : torch::kFloat)};
  }
  torch::Tensor gradient(uint64_t step, const torch::Device& device) const {
    torch::manual_seed(100 + step);
    return torch::randn({count}).to(device);
  }
  // Steps [begin, end) of a run; the gradient's norms.
  std::vector<double> train(Optimizer* optimizer, const Flat& flat, uint64_t begin,
                            uint64_t end) const {
    std::vector<double> norms;
    for (uint64_t step = begin; step < end; ++step) {
      norms.push_back(value_of(optimizer->step(flat.masters, gradient(step, flat.masters.device()),
                                               2, 1e-2, flat.weights)));
    }
    return norms;
  }

  RunSpec spec;
  std::vector<ports::TensorLayout> layout;
  int64_t count;
};

inline std::string name_of(OptimizerKind kind) {
  return kind == OptimizerKind::kAdamW ? "adamw" : kind == OptimizerKind::kNAdam ? "nadam" : "muon";
}

inline void expect_weights_of_masters(const Flat& flat) {
  EXPECT_TRUE(torch::equal(flat.weights, flat.masters.to(flat.weights.scalar_type())));
}

inline void expect_drops_a_bad_gradient(OptimizerKind kind, const torch::Device& device) {
  SCOPED_TRACE(name_of(kind));
  const Stage stage(kind);
  const auto optimizer = make_optimizer(stage.spec.training, stage.layout, device);
  const Flat flat = stage.start(device);
  stage.train(optimizer.get(), flat, 1, 2);
  expect_weights_of_masters(flat);
  const torch::Tensor masters = flat.masters.clone(), first = optimizer->first_moment().clone(),
                      second = optimizer->second_moment().clone();
  for (const double bad :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(), 1e25}) {
    for (const int64_t at : {int64_t{0}, stage.count / 2, stage.count - 1}) {
      const torch::Tensor gradient = stage.gradient(2, device);
      gradient[at] = bad;
      flat.weights.fill_(7);
      const Status status = optimizer->step(flat.masters, gradient, 1, 1e-2, flat.weights).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << bad;
      EXPECT_TRUE(torch::equal(flat.masters, masters));
      expect_weights_of_masters(flat);
      EXPECT_TRUE(torch::equal(optimizer->first_moment(), first));
      EXPECT_TRUE(torch::equal(optimizer->second_moment(), second));
      EXPECT_EQ(optimizer->steps(), 1u);
    }
  }
  // The next good gradient goes on as if nothing had been.
  const auto other = make_optimizer(stage.spec.training, stage.layout, device);
  const Flat expected = stage.start(device);
  stage.train(other.get(), expected, 1, 3);
  stage.train(optimizer.get(), flat, 2, 3);
  EXPECT_TRUE(torch::equal(flat.masters, expected.masters));
}

inline void expect_same_state(const Optimizer& a, const Optimizer& b) {
  EXPECT_TRUE(torch::equal(a.first_moment(), b.first_moment()));
  EXPECT_TRUE(torch::equal(a.second_moment(), b.second_moment()));
  EXPECT_EQ(a.steps(), b.steps());
}

// Saved after `age` steps and gone on with elsewhere: the same bits as without.
inline void expect_restored_continues(OptimizerKind kind, const torch::Device& device,
                                      uint64_t age) {
  SCOPED_TRACE(name_of(kind) + " after " + std::to_string(age));
  const Stage stage(kind);
  const auto optimizer = make_optimizer(stage.spec.training, stage.layout, device);
  const Flat flat = stage.start(device);
  stage.train(optimizer.get(), flat, 0, age);
  const auto resumed = make_optimizer(stage.spec.training, stage.layout, device);
  resumed->restore(optimizer->first_moment().clone(), optimizer->second_moment().clone(),
                   optimizer->steps());
  const Flat copy{flat.masters.clone(), torch::empty_like(flat.weights)};
  EXPECT_EQ(stage.train(optimizer.get(), flat, age, age + 4),
            stage.train(resumed.get(), copy, age, age + 4));
  EXPECT_TRUE(torch::equal(flat.masters, copy.masters));
  EXPECT_TRUE(torch::equal(flat.weights, copy.weights));
  expect_same_state(*optimizer, *resumed);
}

inline void expect_repeats(OptimizerKind kind, const torch::Device& device) {
  SCOPED_TRACE(name_of(kind));
  const Stage stage(kind);
  const auto first = make_optimizer(stage.spec.training, stage.layout, device);
  const auto second = make_optimizer(stage.spec.training, stage.layout, device);
  const Flat a = stage.start(device), b = stage.start(device);
  EXPECT_EQ(stage.train(first.get(), a, 0, 6), stage.train(second.get(), b, 0, 6));
  EXPECT_TRUE(torch::equal(a.masters, b.masters));
  expect_weights_of_masters(a);
  expect_same_state(*first, *second);
}

}  // namespace tessera::model
