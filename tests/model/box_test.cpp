// A box of 2 and 4 workers over gloo against one: the same losses, boundary tensors, gradients and weights, within the
// rounding of sums in another order, for every stage of ZeRO.
#include <cmath>
#include <tuple>

#include "model/pipeline.h"
#include "tessera/collective/groups.h"

namespace tessera::model {
namespace {

using core::LocalState;
using core::OptimizerKind;
using core::Recompute;

constexpr double kLearningRate = 1e-2;
// Of a vector's norm. fp32 sums of up to 60 rows in another order, and what three steps make of it.
constexpr double kGradientBound = 2e-6, kWeightBound = 2e-5;

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, scale = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    scale += std::pow(static_cast<double>(b[i]), 2);
  }
  return scale > 0 ? std::sqrt(difference / scale) : std::sqrt(difference);
}

using Groups = std::vector<std::shared_ptr<ports::CollectiveGroup>>;

// Before any thread begins, as the programs do it.
[[maybe_unused]] const bool kPrepared = (collective::prepare_process(), true);

Groups gloo_groups(size_t workers) {
  auto made = collective::make_groups(std::vector<std::string>(workers, "cpu"), std::chrono::seconds(60));
  EXPECT_TRUE(made.ok()) << made.status();
  Groups groups;
  for (auto& group : *made) groups.push_back(std::move(group));
  return groups;
}

std::unique_ptr<StageEngine> box_engine(const RunSpec& spec, StageIndex stage, const Groups& groups, uint32_t zero_stage) {
  EngineOptions options{.spec = spec, .stage = stage, .threads = 1};
  options.box.devices.assign(groups.size(), "cpu");
  options.box.groups = groups;
  options.box.zero_stage = zero_stage;
  auto engine = make_stage_engine(options);
  EXPECT_TRUE(engine.ok()) << message_of(engine.status());
  return *std::move(engine);
}

// All stages of the model, each on a box of its own groups or (no workers) on one device.
struct Model {
  Model(const RunSpec& run, size_t workers, uint32_t zero_stage) : spec(run) {
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      stages.push_back(workers == 0 ? engine_of(spec, stage, "cpu", PassKind::kFused)
                                    : box_engine(spec, stage, gloo_groups(workers), zero_stage));
    }
  }
  double train(uint64_t microbatch, const std::vector<uint32_t>& tokens) {
    const MicrobatchKey key{microbatch, 0};
    BoundaryPayload payload;
    double loss = 0;
    for (auto& stage : stages) {
      ForwardResult result = value_of(stage->forward(key, tokens, payload));
      payload = std::move(result.output);
      loss = result.loss;
    }
    payload = {};
    for (size_t stage = stages.size(); stage-- > 0;) {
      payload = value_of(stages[stage]->backward(key, payload, true)).input_gradient;
    }
    return loss;
  }
  void step() {
    for (auto& stage : stages) norms.push_back(value_of(stage->step(kLearningRate)).gradient_norm);
  }

  const RunSpec spec;
  std::vector<std::unique_ptr<StageEngine>> stages;
  std::vector<double> norms;
};

RunSpec box_spec(OptimizerKind optimizer, BoundaryKind kind = BoundaryKind::kAnchored) {
  RunSpec spec = tiny_spec(kind, Codec::kFp32, 2);
  spec.training.microbatch_size = 5;  // shares differ
  spec.training.microbatches_per_step = 2;
  spec.training.optimizer = optimizer;
  spec.training.clip_norm = 0.5;
  EXPECT_TRUE(core::validate(&spec).ok());
  return spec;
}

void expect_same(Model& box, Model& single, int steps, int microbatches) {
  uint64_t next = 1;
  for (int step = 0; step < steps; ++step) {
    for (int i = 0; i < microbatches; ++i, ++next) {
      const std::vector<uint32_t> tokens = random_tokens(single.spec, next);
      const double expected = single.train(next, tokens);
      EXPECT_NEAR(box.train(next, tokens), expected, 1e-5 * expected);
    }
    for (size_t stage = 0; step == 0 && stage < box.stages.size(); ++stage) {
      EXPECT_LT(relative_distance(box.stages[stage]->export_state().gradient,
                                  single.stages[stage]->export_state().gradient),
                kGradientBound);
    }
    single.step();
    box.step();
  }
  for (size_t i = 0; i < single.norms.size(); ++i) EXPECT_NEAR(box.norms[i], single.norms[i], 1e-4 * single.norms[i]);
  for (size_t stage = 0; stage < box.stages.size(); ++stage) {
    const LocalState ours = box.stages[stage]->export_state(), theirs = single.stages[stage]->export_state();
    EXPECT_LT(relative_distance(ours.masters, theirs.masters), kWeightBound) << stage;
    EXPECT_LT(relative_distance(ours.first_moment, theirs.first_moment), 1e-3) << stage;
    EXPECT_LT(relative_distance(ours.second_moment, theirs.second_moment), 1e-3) << stage;
    EXPECT_EQ(ours.optimizer_steps, theirs.optimizer_steps);
    EXPECT_EQ(ours.gradient_microbatches, 0u);
  }
}

class Box : public testing::TestWithParam<std::tuple<size_t, uint32_t>> {
 protected:
  size_t workers() const { return std::get<0>(GetParam()); }
  uint32_t zero() const { return std::get<1>(GetParam()); }
};

TEST_P(Box, TrainsAsOneWorkerWithEveryOptimizer) {
  for (const OptimizerKind optimizer : {OptimizerKind::kAdamW, OptimizerKind::kNAdam, OptimizerKind::kMuon}) {
    const RunSpec spec = box_spec(optimizer);
    Model box(spec, workers(), zero()), single(spec, 0, 0);
    expect_same(box, single, 3, 2);
  }
}

TEST_P(Box, TrainsAsOneWorkerWithEveryBoundaryAndRecomputation) {
  for (const BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kResidual}) {
    for (const Recompute recompute : {Recompute::kBlock, Recompute::kFull}) {
      RunSpec spec = box_spec(OptimizerKind::kAdamW, kind);
      spec.training.recompute = recompute;
      Model box(spec, workers(), zero()), single(spec, 0, 0);
      expect_same(box, single, 2, 2);
    }
  }
}

// A step may come early, or late: microbatches that follow a gradient which was reduced already.
TEST_P(Box, TakesFewerOrMoreMicrobatchesThanExpected) {
  const RunSpec spec = box_spec(OptimizerKind::kAdamW);
  for (const int microbatches : {1, 5}) {
    Model box(spec, workers(), zero()), single(spec, 0, 0);
    expect_same(box, single, 2, microbatches);
  }
}

// In flight over a step: each microbatch keeps the weights of its forward, in every stage of ZeRO.
TEST_P(Box, MicrobatchesInFlightKeepTheirWeights) {
  const RunSpec spec = box_spec(OptimizerKind::kAdamW, BoundaryKind::kNone);
  const Groups groups = gloo_groups(workers());
  const auto box = box_engine(spec, 0, groups, zero()), fresh = box_engine(spec, 0, gloo_groups(workers()), zero());
  const std::vector<uint32_t> first = random_tokens(spec, 1), second = random_tokens(spec, 2);
  BoundaryPayload gradient = value_of(box->forward({1, 0}, first, {})).output;
  ASSERT_TRUE(box->forward({2, 0}, second, {}).ok());
  ASSERT_TRUE(box->backward({1, 0}, gradient, true).ok());
  ASSERT_TRUE(box->step(kLearningRate).ok());
  EXPECT_EQ(box->weight_version(), fresh->weight_version() + 1);
  EXPECT_EQ(value_of(box->backward({2, 0}, gradient, true)).weight_version, fresh->weight_version());
  ASSERT_TRUE(fresh->forward({2, 0}, second, {}).ok());
  ASSERT_TRUE(fresh->backward({2, 0}, gradient, true).ok());
  EXPECT_EQ(box->export_state().gradient, fresh->export_state().gradient);
}

// What a box exports is a stage's state like any other, whatever the number of its GPUs.
TEST_P(Box, StateMovesBetweenBoxesAndSingleDevices) {
  const RunSpec spec = box_spec(OptimizerKind::kMuon);
  Model single(spec, 0, 0);
  single.train(1, random_tokens(spec, 1));
  single.step();
  single.train(2, random_tokens(spec, 2));
  const LocalState state = single.stages[1]->export_state();
  ASSERT_EQ(state.gradient_microbatches, 1u);

  const auto box = box_engine(spec, 1, gloo_groups(workers()), zero());
  EXPECT_EQ(box->layout().size(), single.stages[1]->layout().size());
  ASSERT_TRUE(box->import_state(state).ok());
  for (int again = 0; again < 2; ++again) {
    const LocalState back = box->export_state();
    EXPECT_EQ(back.masters, state.masters);
    EXPECT_EQ(back.first_moment, state.first_moment);
    EXPECT_EQ(back.second_moment, state.second_moment);
    EXPECT_EQ(back.gradient, state.gradient);
    EXPECT_EQ(back.optimizer_steps, state.optimizer_steps);
    EXPECT_EQ(back.gradient_microbatches, 1u);
  }
  ASSERT_TRUE(box->step(kLearningRate).ok());
  ASSERT_TRUE(single.stages[1]->step(kLearningRate).ok());
  EXPECT_LT(relative_distance(box->masters(), single.stages[1]->masters()), kWeightBound);

  ASSERT_TRUE(box->set_masters(state.masters).ok());
  EXPECT_EQ(box->masters(), state.masters);
}

TEST_P(Box, ADroppedGradientLeavesTheWeights) {
  const RunSpec spec = box_spec(OptimizerKind::kAdamW);
  const auto box = box_engine(spec, 1, gloo_groups(workers()), zero());
  LocalState state = box->export_state();
  const std::vector<float> before = state.masters;
  state.gradient.assign(before.size(), 1e30f);  // its squares are infinite
  state.gradient_microbatches = 1;
  ASSERT_TRUE(box->import_state(state).ok());
  EXPECT_EQ(box->step(kLearningRate).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(box->masters(), before);
  EXPECT_EQ(box->accumulated_microbatches(), 0u);
}

// What audits need: the weights that microbatches in flight were computed with, as a single device gives them.
TEST_P(Box, OlderWeightsAreThoseOfTheMicrobatchesInFlight) {
  const RunSpec spec = box_spec(OptimizerKind::kAdamW);
  const auto box = box_engine(spec, 0, gloo_groups(workers()), zero());
  std::vector<std::vector<float>> before;
  BoundaryPayload first;
  for (uint64_t microbatch = 1; microbatch <= 3; ++microbatch) {
    EXPECT_EQ(value_of(box->older_weights()).size(), before.size());
    const ForwardResult result = value_of(box->forward({microbatch, 0}, random_tokens(spec, microbatch), {}));
    if (microbatch == 1) first = result.output;
    const ForwardResult again = value_of(box->forward({microbatch, 1}, random_tokens(spec, microbatch), {}));
    ASSERT_TRUE(box->backward({microbatch, 1}, again.output, true).ok());
    before.push_back(box->masters());
    ASSERT_TRUE(box->step(kLearningRate).ok());
  }
  const std::vector<ports::WeightVersion> older = value_of(box->older_weights());
  ASSERT_EQ(older.size(), before.size());
  for (size_t i = 0; i < older.size(); ++i) EXPECT_EQ(older[i].values, before[i]) << older[i].version;
  ASSERT_TRUE(box->backward({1, 0}, first, false).ok());
  EXPECT_EQ(value_of(box->older_weights()).size(), before.size() - 1);
}

INSTANTIATE_TEST_SUITE_P(Gloo, Box, testing::Combine(testing::Values(2, 4), testing::Values(0u, 1u, 2u, 3u)),
                         [](const auto& info) {
                           return "Workers" + std::to_string(std::get<0>(info.param)) + "Zero" +
                                  std::to_string(std::get<1>(info.param));
                         });

// With two workers and one microbatch a step, every stage of ZeRO adds the same two numbers.
TEST(BoxStages, AreEqualToTheBitWithTwoWorkers) {
  RunSpec spec = box_spec(OptimizerKind::kAdamW);
  spec.training.microbatches_per_step = 1;
  spec.training.clip_norm = 0;  // the norm's sum has another order
  std::vector<std::vector<float>> masters;
  for (uint32_t zero = 0; zero <= 3; ++zero) {
    Model box(spec, 2, zero);
    for (uint64_t microbatch = 1; microbatch <= 3; ++microbatch) {
      box.train(microbatch, random_tokens(spec, microbatch));
      box.step();
    }
    masters.push_back(box.stages[1]->masters());
  }
  for (uint32_t zero = 1; zero <= 3; ++zero) EXPECT_EQ(masters[zero], masters[0]) << zero;
}

// A group whose operations fail from some call on.
class FailingGroup final : public ports::CollectiveGroup {
 public:
  FailingGroup(std::shared_ptr<ports::CollectiveGroup> group, int good_calls) : group_(std::move(group)), left_(good_calls) {}
  uint32_t rank() const override { return group_->rank(); }
  uint32_t size() const override { return group_->size(); }
  ports::PendingResult all_reduce(const ports::Numbers& numbers) override {
    return failed() ? refusal() : group_->all_reduce(numbers);
  }
  ports::PendingResult reduce_scatter(const ports::Numbers& in, const ports::Numbers& out) override {
    return failed() ? refusal() : group_->reduce_scatter(in, out);
  }
  ports::PendingResult all_gather(const ports::Numbers& in, const ports::Numbers& out) override {
    return failed() ? refusal() : group_->all_gather(in, out);
  }
  ports::PendingResult broadcast(const ports::Numbers& numbers, uint32_t root) override {
    return failed() ? refusal() : group_->broadcast(numbers, root);
  }
  Status barrier() override { return group_->barrier(); }
  void abort() override { group_->abort(); }

 private:
  bool failed() { return left_-- <= 0; }
  static ports::PendingResult refusal() { return internal_error("the link is gone"); }
  const std::shared_ptr<ports::CollectiveGroup> group_;
  int left_;
};

TEST(BoxFailure, AWorkerThatFailsEndsTheBoxWithItsMessage) {
  const RunSpec spec = box_spec(OptimizerKind::kAdamW);
  auto made = collective::make_groups({"cpu", "cpu"}, std::chrono::milliseconds(300));
  ASSERT_TRUE(made.ok());
  const Groups groups{std::move((*made)[0]), std::make_shared<FailingGroup>(std::move((*made)[1]), 14)};
  const auto box = box_engine(spec, 0, groups, 2);
  Status status = ok_status();
  for (uint64_t microbatch = 1; status.ok() && microbatch < 20; ++microbatch) {
    const auto output = box->forward({microbatch, 0}, random_tokens(spec, microbatch), {});
    status = output.status();
    if (status.ok()) status = box->backward({microbatch, 0}, output->output, true).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(message_of(status), testing::HasSubstr("of this box"));
  // And it stays so, at once.
  EXPECT_EQ(box->step(kLearningRate).status().code(), absl::StatusCode::kInternal);
}

TEST(BoxOptions, RefusesWhatCannotBeShared) {
  RunSpec spec = box_spec(OptimizerKind::kAdamW);
  spec.training.microbatch_size = 1;
  EngineOptions options{.spec = spec, .stage = 0, .threads = 1};
  options.box.devices = {"cpu", "cpu"};
  options.box.groups = gloo_groups(2);
  EXPECT_EQ(make_stage_engine(options).status().code(), absl::StatusCode::kFailedPrecondition);
  options.spec = box_spec(OptimizerKind::kAdamW, BoundaryKind::kIota);
  EXPECT_EQ(make_stage_engine(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace tessera::model
