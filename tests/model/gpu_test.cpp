// The same pipeline on the CPU (fp32) and on a GPU (bf16), from the same weights over several
// optimizer steps.
#include <cmath>

#include "model/pipeline.h"
#include "tessera/model/whole_model.h"

namespace tessera::model {
namespace {

// On a loss of 4.1 nats at the start. bf16 rounds each number by up to 0.4 %, here and there; a
// wrong kernel or a wrong scale moves the loss by tenths.
constexpr double kLossBound = 0.03;

bool has_gpu() { return choose_device("cuda").ok(); }

TEST(Gpu, PipelineHasTheCpusLosses) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kIota, BoundaryKind::kResidual,
                            BoundaryKind::kAnchored}) {
    for (Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8}) {
      const RunSpec spec = tiny_spec(kind, codec);
      Pipeline cpu(spec), gpu(spec, "cuda:0");
      EXPECT_EQ(cpu.masters(), gpu.masters());
      double worst = 0;
      for (uint64_t microbatch = 0; microbatch < 12; ++microbatch) {
        const std::vector<uint32_t> tokens = random_tokens(spec, microbatch % 3);
        const double expected = cpu.train({microbatch, 0}, tokens);
        const double measured = gpu.train({microbatch, 0}, tokens);
        worst = std::max(worst, std::abs(expected - measured));
        if (microbatch % 2 == 1) {
          cpu.step(3e-3);
          gpu.step(3e-3);
        }
      }
      EXPECT_LT(worst, kLossBound) << core::name_of(kind) << " " << core::name_of(codec);
      RecordProperty(std::string(core::name_of(kind)) + "_" + core::name_of(codec),
                     std::to_string(worst));
      std::printf("%s %s: worst difference of the loss %.5f\n", core::name_of(kind),
                  core::name_of(codec), worst);
    }
  }
}

TEST(Gpu, EveryOptimizerHasTheCpusLosses) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (const core::OptimizerKind kind : {core::OptimizerKind::kAdamW, core::OptimizerKind::kNAdam,
                                         core::OptimizerKind::kMuon}) {
    RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kBf16);
    spec.training.optimizer = kind;
    spec.training.learning_rate = 3e-3;  // Muon's rate follows it
    Pipeline cpu(spec), gpu(spec, "cuda:0");
    double worst = 0;
    for (uint64_t microbatch = 0; microbatch < 12; ++microbatch) {
      const std::vector<uint32_t> tokens = random_tokens(spec, microbatch % 3);
      worst = std::max(worst, std::abs(cpu.train({microbatch, 0}, tokens) -
                                       gpu.train({microbatch, 0}, tokens)));
      if (microbatch % 2 == 1) {
        cpu.step(3e-3);
        gpu.step(3e-3);
      }
    }
    EXPECT_LT(worst, kLossBound) << static_cast<int>(kind);
    std::printf("optimizer %d: worst difference of the loss %.5f\n", static_cast<int>(kind),
                worst);
  }
}

TEST(Gpu, WholeModelHasThePipelinesLoss) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  Pipeline gpu(spec, "cuda:0");
  const std::vector<uint32_t> tokens = random_tokens(spec, 5);
  auto model = value_of(WholeModel::create(spec, gpu.masters(), "cuda:0"));
  // Two ways to the same numbers, each rounding to bf16 in its own places.
  EXPECT_NEAR(value_of(model->loss(tokens)), gpu.forward({1, 0}, tokens), 1e-3);
  EXPECT_GT(device_memory_bytes("cuda:0"), uint64_t{1} << 30);
}

TEST(Gpu, ExportedStateContinuesOnTheCpu) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt8);
  Pipeline gpu(spec, "cuda:0"), cpu(spec);
  gpu.train({1, 0}, random_tokens(spec, 1));
  gpu.step(3e-3);
  gpu.train({2, 0}, random_tokens(spec, 2));
  for (size_t i = 0; i < gpu.size(); ++i)
    ASSERT_TRUE(cpu.stage(i).import_state(gpu.stage(i).export_state()).ok());
  gpu.step(3e-3);
  cpu.step(3e-3);
  for (size_t i = 0; i < gpu.size(); ++i) {
    const std::vector<float> on_gpu = gpu.stage(i).masters(), on_cpu = cpu.stage(i).masters();
    double worst = 0;
    for (size_t k = 0; k < on_gpu.size(); ++k)
      worst = std::max<double>(worst, std::abs(on_gpu[k] - on_cpu[k]));
    EXPECT_LT(worst, 3e-5) << i;  // the optimizer is in fp32 on both: 1 % of a step
  }
}

// Heads and lengths that cuDNN's attention takes, a vocabulary that needs padding.
RunSpec medium_spec(BoundaryKind kind) {
  RunSpec spec = tiny_spec(kind, Codec::kBf16, 2);
  spec.model.width = 256;
  spec.model.kv_heads = 2;
  spec.model.ffn_width = 704;
  spec.model.context = 128;
  spec.model.vocab = 1001;
  EXPECT_TRUE(core::validate(&spec).ok());
  return spec;
}

// Wide enough for products that end in SwiGLU, on the GPUs that have them.
RunSpec wide_spec(BoundaryKind kind) {
  RunSpec spec = medium_spec(kind);
  spec.model.layers = 2;
  spec.pipeline.stage_layers = {1, 1};
  spec.model.width = 512;
  spec.model.ffn_width = 16'896;
  EXPECT_TRUE(core::validate(&spec).ok());
  return spec;
}

std::vector<std::vector<float>> gradients_of(Pipeline* pipeline) {
  std::vector<std::vector<float>> gradients;
  for (size_t i = 0; i < pipeline->size(); ++i) {
    gradients.push_back(pipeline->stage(i).export_state().gradient);
  }
  return gradients;
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    scale += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / scale);
}

void expect_the_cpus_gradients(const RunSpec& spec) {
  Pipeline cpu(spec), gpu(spec, "cuda:0");
  for (uint64_t microbatch = 0; microbatch < 2; ++microbatch) {
    const std::vector<uint32_t> tokens = random_tokens(spec, microbatch);
    EXPECT_NEAR(gpu.train({microbatch, 0}, tokens), cpu.train({microbatch, 0}, tokens), kLossBound);
  }
  const auto expected = gradients_of(&cpu), measured = gradients_of(&gpu);
  for (size_t stage = 0; stage < expected.size(); ++stage) {
    const double distance = relative_distance(measured[stage], expected[stage]);
    // A wrong term changes a gradient by tenths; bf16 by its rounding, added up over layers.
    EXPECT_LT(distance, 0.03) << core::name_of(spec.boundary.kind) << " stage " << stage;
    std::printf("%s width %d recompute %d stage %zu: gradients %.4f apart\n",
                core::name_of(spec.boundary.kind), static_cast<int>(spec.model.width),
                static_cast<int>(spec.training.recompute), stage, distance);
  }
}

TEST(Gpu, GradientsAreTheCpusWithinBfloat16) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (core::Recompute recompute :
       {core::Recompute::kOff, core::Recompute::kBlock, core::Recompute::kFull}) {
    for (BoundaryKind kind :
         {BoundaryKind::kNone, BoundaryKind::kResidual, BoundaryKind::kAnchored}) {
      RunSpec spec = medium_spec(kind);
      spec.training.recompute = recompute;
      expect_the_cpus_gradients(spec);
    }
    RunSpec spec = wide_spec(BoundaryKind::kAnchored);
    spec.training.recompute = recompute;
    expect_the_cpus_gradients(spec);
  }
}

TEST(Gpu, DeterministicModeRepeatsBitForBit) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  for (RunSpec spec : {medium_spec(BoundaryKind::kNone), medium_spec(BoundaryKind::kResidual),
                       medium_spec(BoundaryKind::kAnchored), wide_spec(BoundaryKind::kAnchored)}) {
    spec.training.deterministic = true;
    std::vector<std::vector<std::vector<float>>> runs;
    for (int run = 0; run < 3; ++run) {
      Pipeline gpu(spec, "cuda:0");
      for (uint64_t microbatch = 0; microbatch < 4; ++microbatch) {
        gpu.train({microbatch, 0}, random_tokens(spec, microbatch));
        if (microbatch % 2 == 1) gpu.step(1e-3);
      }
      runs.push_back(gpu.masters());
    }
    EXPECT_EQ(runs[0], runs[1]) << core::name_of(spec.boundary.kind);
    EXPECT_EQ(runs[0], runs[2]) << core::name_of(spec.boundary.kind);
  }
}

// Several microbatches under way over a step: each keeps the weights of its forward pass.
TEST(Gpu, MicrobatchesInFlightKeepTheirWeightsAcrossSteps) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  RunSpec spec = medium_spec(BoundaryKind::kAnchored);
  spec.training.deterministic = true;
  Pipeline expected(spec, "cuda:0"), stepped(spec, "cuda:0");
  expected.train({2, 0}, random_tokens(spec, 2));
  expected.train({3, 0}, random_tokens(spec, 3));
  for (uint64_t microbatch = 1; microbatch <= 3; ++microbatch) {
    stepped.forward({microbatch, 0}, random_tokens(spec, microbatch));
  }
  stepped.backward({1, 0});
  stepped.step(1e-2);
  stepped.backward({2, 0});
  stepped.backward({3, 0});
  EXPECT_EQ(gradients_of(&stepped), gradients_of(&expected));
}

// Products of 8-bit floats against the CPU's imitation of them: codes are equal where what is coded
// is, and bf16 moves some of them by a step.
TEST(Gpu, Fp8ProductsAreNearTheCpus) {
  if (!has_gpu() || !multiplies_fp8("cuda:0")) GTEST_SKIP() << "no GPU with products of 8-bit floats";
  for (core::Recompute recompute : {core::Recompute::kOff, core::Recompute::kBlock}) {
    RunSpec spec = medium_spec(BoundaryKind::kAnchored);
    spec.training.recompute = recompute;
    RunSpec fp8 = spec;
    fp8.training.matrix_products = core::MatrixProducts::kFp8;
    ASSERT_TRUE(core::validate(&fp8).ok());
    Pipeline cpu(fp8), gpu(fp8, "cuda:0"), bf16(spec, "cuda:0");
    for (uint64_t microbatch = 0; microbatch < 2; ++microbatch) {
      const std::vector<uint32_t> tokens = random_tokens(spec, microbatch);
      bf16.train({microbatch, 0}, tokens);
      EXPECT_NEAR(gpu.train({microbatch, 0}, tokens), cpu.train({microbatch, 0}, tokens), kLossBound);
    }
    const auto expected = gradients_of(&cpu), measured = gradients_of(&gpu), wide = gradients_of(&bf16);
    for (size_t stage = 0; stage < expected.size(); ++stage) {
      const double distance = relative_distance(measured[stage], expected[stage]);
      EXPECT_LT(distance, 0.1) << stage;
      std::printf("fp8 recompute %d stage %zu: gradients %.4f from the CPU's, %.4f from bf16's\n",
                  static_cast<int>(recompute), stage, distance,
                  relative_distance(measured[stage], wide[stage]));
    }
  }
}

TEST(Gpu, Fp8ProductsRepeatBitForBit) {
  if (!has_gpu() || !multiplies_fp8("cuda:0")) GTEST_SKIP() << "no GPU with products of 8-bit floats";
  RunSpec spec = medium_spec(BoundaryKind::kAnchored);
  spec.training.deterministic = true;
  spec.training.matrix_products = core::MatrixProducts::kFp8;
  ASSERT_TRUE(core::validate(&spec).ok());
  std::vector<std::vector<std::vector<float>>> runs;
  for (int run = 0; run < 2; ++run) {
    Pipeline gpu(spec, "cuda:0");
    for (uint64_t microbatch = 0; microbatch < 4; ++microbatch) {
      gpu.train({microbatch, 0}, random_tokens(spec, microbatch));
      if (microbatch % 2 == 1) gpu.step(1e-3);
    }
    runs.push_back(gpu.masters());
  }
  EXPECT_EQ(runs[0], runs[1]);
}

// Text of a made-up language: each pair of tokens has four likely successors.
std::vector<uint32_t> language(const RunSpec& spec, uint64_t microbatch) {
  Prng prng(1000 + microbatch);
  std::vector<uint32_t> tokens;
  while (tokens.size() < spec.training.microbatch_size * (spec.model.context + 1)) {
    const uint64_t before = tokens.size() < 2 ? 0 : tokens[tokens.size() - 2] * 1009 + tokens.back();
    Prng successors(before * 4 + prng.below(4));
    const bool likely = prng.below(10) < 8;
    tokens.push_back(static_cast<uint32_t>((likely ? successors : prng).below(spec.model.vocab)));
  }
  return tokens;
}

// docs/numerics.md has what it printed.
TEST(Gpu, Fp8ProductsTrainLikeBfloat16) {
  if (!has_gpu() || !multiplies_fp8("cuda:0")) GTEST_SKIP() << "no GPU with products of 8-bit floats";
  constexpr uint64_t kSteps = 400, kLast = 50;
  RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kBf16, 1);
  spec.model = {.layers = 4, .width = 1024, .heads = 16, .kv_heads = 8, .ffn_width = 2816, .vocab = 64, .context = 256};
  spec.training.microbatch_size = 16;
  std::vector<double> ends;
  for (const auto products : {core::MatrixProducts::kBf16, core::MatrixProducts::kFp8}) {
    spec.training.matrix_products = products;
    ASSERT_TRUE(core::validate(&spec).ok());
    Pipeline pipeline(spec, "cuda:0");
    double end = 0;
    for (uint64_t step = 0; step < kSteps; ++step) {
      const double loss = pipeline.train({step, 0}, language(spec, step));
      if (step + kLast >= kSteps) end += loss / kLast;
      pipeline.step(std::min<double>(1, static_cast<double>(step + 1) / 40) * 5e-4);
    }
    ends.push_back(end);
  }
  std::printf("mean loss of the last %d of %d steps: bf16 %.4f, fp8 %.4f\n", static_cast<int>(kLast),
              static_cast<int>(kSteps), ends[0], ends[1]);
  EXPECT_LT(ends[0], 3.0);  // it learns: log(64) is 4.16
  EXPECT_NEAR(ends[1], ends[0], 0.05);
}

}  // namespace
}  // namespace tessera::model
