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

TEST(Gpu, WholeModelHasThePipelinesLoss) {
  if (!has_gpu()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  Pipeline gpu(spec, "cuda:0");
  const std::vector<uint32_t> tokens = random_tokens(spec, 5);
  auto model = value_of(WholeModel::create(spec, gpu.masters(), "cuda:0"));
  EXPECT_NEAR(value_of(model->loss(tokens)), gpu.forward({1, 0}, tokens), 1e-4);
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

}  // namespace
}  // namespace tessera::model
