// A box on CUDA: workers that share a GPU against one GPU without a box, and a group of NCCL.
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

struct GpuModel {
  // No workers: one GPU, no box.
  GpuModel(const RunSpec& run, size_t workers, uint32_t zero_stage) : spec(run) {
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      EngineOptions options{.spec = spec, .stage = stage, .device = "cuda:0", .threads = 1};
      if (workers > 0) {
        options.box.devices.assign(workers, "cuda:0");
        for (auto& group : collective::make_shared_device_groups("cuda:0", workers)) {
          options.box.groups.push_back(std::move(group));
        }
        options.box.zero_stage = zero_stage;
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

TEST(GpuBox, WorkersThatShareAGpuTrainAsOne) {
  if (!choose_device("cuda").ok()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (const OptimizerKind optimizer : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
    const RunSpec spec = gpu_box_spec(optimizer);
    for (const size_t workers : {2, 4}) {
      for (uint32_t zero_stage = 0; zero_stage <= 3; ++zero_stage) {
        SCOPED_TRACE(std::to_string(workers) + " workers, zero_stage " + std::to_string(zero_stage));
        GpuModel box(spec, workers, zero_stage), single(spec, 0, 0);
        double worst = 0, apart = 0;
        uint64_t next = 1;
        for (int step = 0; step < 3; ++step) {
          for (int i = 0; i < 2; ++i, ++next) {
            worst = std::max(worst, std::abs(box.train(next) - single.train(next)));
          }
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
        std::printf("optimizer %d, %zu workers, zero_stage %u: losses %.5f, gradients %.4f apart\n",
                    static_cast<int>(optimizer), workers, zero_stage, worst, apart);
      }
    }
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
