// A box on CUDA against one GPU without a box: workers that share a GPU, and GPUs of their own over NCCL.
#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <cmath>

#include "model/pipeline.h"
#include "tessera/collective/groups.h"

namespace tessera::model {
namespace {

using core::OptimizerKind;

// bf16 rounds activations, and a worker's share of the microbatch has other products than the whole.
constexpr double kLossBound = 0.03, kGradientBound = 0.03;

[[maybe_unused]] const bool kPrepared = (collective::prepare_process(), true);

RunSpec gpu_box_spec(OptimizerKind optimizer) {
  RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kBf16, 2);
  spec.model.width = 256;
  spec.model.ffn_width = 704;
  spec.model.context = 128;
  spec.model.vocab = 1001;
  spec.training.microbatch_size = 4;
  spec.training.microbatches_per_step = 2;
  spec.training.optimizer = optimizer;
  EXPECT_TRUE(core::validate(&spec).ok());
  return spec;
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    scale += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / scale);
}

using Devices = std::vector<std::string>;

struct GpuModel {
  // No devices: one GPU, no box.
  GpuModel(const RunSpec& run, const Devices& devices, uint32_t zero_stage) : spec(run) {
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      EngineOptions options{.spec = spec, .stage = stage, .device = "cuda:0", .threads = 1};
      options.box.devices = devices;
      options.box.zero_stage = zero_stage;
      if (!devices.empty()) {
        auto groups = devices.front() == devices.back()
                          ? collective::make_shared_device_groups(devices.front(), devices.size())
                          : value_of(collective::make_groups(devices, std::chrono::seconds(60)));
        for (auto& group : groups) options.box.groups.push_back(std::move(group));
      }
      stages.push_back(value_of(make_stage_engine(options)));
    }
  }
  double train(uint64_t microbatch) {
    const MicrobatchKey key{microbatch, 0};
    BoundaryPayload payload;
    double loss = 0;
    for (auto& stage : stages) {
      ForwardResult result = value_of(stage->forward(key, random_tokens(spec, microbatch), payload));
      payload = std::move(result.output);
      loss = result.loss;
    }
    payload = {};
    for (size_t stage = stages.size(); stage-- > 0;) {
      payload = value_of(stages[stage]->backward(key, payload, true)).input_gradient;
    }
    return loss;
  }
  const RunSpec spec;
  std::vector<std::unique_ptr<StageEngine>> stages;
};

void expect_to_train_as_one(OptimizerKind optimizer, const Devices& devices, uint32_t zero_stage) {
  SCOPED_TRACE(std::to_string(devices.size()) + " workers, zero_stage " + std::to_string(zero_stage));
  const RunSpec spec = gpu_box_spec(optimizer);
  GpuModel box(spec, devices, zero_stage), single(spec, {}, 0);
  double worst = 0, apart = 0;
  uint64_t next = 1;
  for (int step = 0; step < 3; ++step) {
    for (int i = 0; i < 2; ++i, ++next) worst = std::max(worst, std::abs(box.train(next) - single.train(next)));
    for (size_t stage = 0; step == 0 && stage < box.stages.size(); ++stage) {
      apart = std::max(apart, relative_distance(box.stages[stage]->export_state().gradient,
                                                single.stages[stage]->export_state().gradient));
    }
    for (size_t stage = 0; stage < box.stages.size(); ++stage) {
      const double expected = value_of(single.stages[stage]->step(1e-3)).gradient_norm;
      EXPECT_NEAR(value_of(box.stages[stage]->step(1e-3)).gradient_norm, expected, 0.03 * expected);
    }
  }
  EXPECT_LT(worst, kLossBound);
  EXPECT_LT(apart, kGradientBound);
  std::printf("optimizer %d, %zu workers, zero_stage %u: losses %.5f, gradients %.4f apart\n", static_cast<int>(optimizer),
              devices.size(), zero_stage, worst, apart);
}

constexpr OptimizerKind kOptimizers[] = {OptimizerKind::kAdamW, OptimizerKind::kMuon};

TEST(GpuBox, WorkersThatShareAGpuTrainAsOne) {
  if (!choose_device("cuda").ok()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (const OptimizerKind optimizer : kOptimizers) {
    for (const size_t workers : {2, 4}) {
      for (uint32_t zero_stage = 0; zero_stage <= 3; ++zero_stage) {
        expect_to_train_as_one(optimizer, Devices(workers, "cuda:0"), zero_stage);
      }
    }
  }
}

// What comes after a backward pass is in order with it only on the stream that the caller had.
TEST(GpuBox, ABackwardPassLeavesTheCallersStreamAsItWas) {
  if (!choose_device("cuda").ok()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
  const at::Device device("cuda:0");
  const c10::Stream before = cuda.getStream(device);
  GpuModel box(gpu_box_spec(OptimizerKind::kAdamW), Devices(2, "cuda:0"), 1);
  box.train(1);
  EXPECT_EQ(cuda.getStream(device), before);
}

TEST(GpuBox, GpusTrainAsOneOverNccl) {
  Devices devices;
  while (devices.size() < 4 && choose_device("cuda:" + std::to_string(devices.size())).ok()) {
    devices.push_back("cuda:" + std::to_string(devices.size()));
  }
  if (devices.size() < 2) GTEST_SKIP() << "there are " << devices.size() << " GPUs";
  for (const OptimizerKind optimizer : kOptimizers) {
    for (uint32_t zero_stage = 0; zero_stage <= 3; ++zero_stage) expect_to_train_as_one(optimizer, devices, zero_stage);
  }
}

// With one microbatch a step and no clipping two GPUs add the same two numbers at every stage of ZeRO.
TEST(GpuBox, StagesAreEqualToTheBitOnTwoGpus) {
  if (!choose_device("cuda:1").ok()) GTEST_SKIP() << message_of(choose_device("cuda:1").status());
  RunSpec spec = gpu_box_spec(OptimizerKind::kAdamW);
  spec.training.microbatches_per_step = 1;
  spec.training.clip_norm = 0;
  spec.training.deterministic = true;
  std::vector<std::vector<float>> masters;
  for (uint32_t zero_stage = 0; zero_stage <= 3; ++zero_stage) {
    GpuModel box(spec, {"cuda:0", "cuda:1"}, zero_stage);
    for (uint64_t microbatch = 1; microbatch <= 3; ++microbatch) {
      box.train(microbatch);
      for (auto& stage : box.stages) ASSERT_TRUE(stage->step(1e-3).ok());
    }
    masters.push_back(box.stages[1]->masters());
  }
  at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
  for (uint32_t zero_stage = 1; zero_stage <= 3; ++zero_stage) EXPECT_EQ(masters[zero_stage], masters[0]) << zero_stage;
}

// A worker's end that takes no part any more once it left: the others' kernels wait on their GPUs.
class LeavingGroup final : public ports::CollectiveGroup {
 public:
  explicit LeavingGroup(std::unique_ptr<ports::CollectiveGroup> group) : group_(std::move(group)) {}
  void leave() { left_ = true; }
  uint32_t rank() const override { return group_->rank(); }
  uint32_t size() const override { return group_->size(); }
  ports::PendingResult all_reduce(const ports::Numbers& numbers) override {
    return left_ ? ports::PendingResult(nullptr) : group_->all_reduce(numbers);
  }
  ports::PendingResult reduce_scatter(const ports::Numbers& in, const ports::Numbers& out) override {
    return left_ ? ports::PendingResult(nullptr) : group_->reduce_scatter(in, out);
  }
  ports::PendingResult all_gather(const ports::Numbers& in, const ports::Numbers& out) override {
    return left_ ? ports::PendingResult(nullptr) : group_->all_gather(in, out);
  }
  ports::PendingResult broadcast(const ports::Numbers& numbers, uint32_t root) override {
    return left_ ? ports::PendingResult(nullptr) : group_->broadcast(numbers, root);
  }
  Status barrier() override { return group_->barrier(); }
  void abort() override { group_->abort(); }

 private:
  const std::unique_ptr<ports::CollectiveGroup> group_;
  std::atomic<bool> left_ = false;
};

TEST(GpuBox, AGpuThatLeavesIsAnErrorInTime) {
  if (!choose_device("cuda:1").ok()) GTEST_SKIP() << message_of(choose_device("cuda:1").status());
  for (const uint32_t zero_stage : {1u, 3u}) {
    SCOPED_TRACE(zero_stage);
    const RunSpec spec = gpu_box_spec(OptimizerKind::kAdamW);
    EngineOptions options{.spec = spec, .stage = 0, .device = "cuda:0", .threads = 1};
    options.box.devices = {"cuda:0", "cuda:1"};
    options.box.zero_stage = zero_stage;
    options.box.patience = std::chrono::seconds(20);  // making the group is no call
    auto groups = value_of(collective::make_groups(options.box.devices, std::chrono::seconds(60)));
    const auto leaving = std::make_shared<LeavingGroup>(std::move(groups[1]));
    options.box.groups = {std::move(groups[0]), leaving};
    const auto engine = value_of(make_stage_engine(options));
    const auto train = [&](uint64_t microbatch) -> Status {
      const MicrobatchKey key{microbatch, 0};
      BoundaryPayload gradient;
      TESSERA_ASSIGN_OR_RETURN(ForwardResult result, engine->forward(key, random_tokens(spec, microbatch), {}));
      gradient = std::move(result.output);
      TESSERA_RETURN_IF_ERROR(engine->backward(key, gradient, true).status());
      return engine->step(1e-3).status();
    };
    ASSERT_TRUE(train(1).ok());
    leaving->leave();
    const auto begin = std::chrono::steady_clock::now();
    Status status;
    for (uint64_t microbatch = 2; status.ok() && microbatch < 5; ++microbatch) status = train(microbatch);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << message_of(status);
    EXPECT_LT(taken.count(), 40);
    std::printf("zero_stage %u: after %.1f s: %s\n", zero_stage, taken.count(), message_of(status).c_str());
  }
}

TEST(GpuBox, NcclMakesAGroupOfOne) {
  if (!choose_device("cuda").ok()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  auto made = collective::make_groups({"cuda:0"}, std::chrono::seconds(60));
  ASSERT_TRUE(made.ok()) << message_of(made.status());
  EXPECT_EQ(made->front()->size(), 1u);
  EXPECT_TRUE(made->front()->barrier().ok());
}

}  // namespace
}  // namespace tessera::model
