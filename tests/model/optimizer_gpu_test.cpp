// The optimizers on a GPU: what they must do on every device, and that they go where the CPU's go.
#include "model/optimizer_checks.h"

namespace tessera::model {
namespace {

class OptimizerGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!choose_device("cuda").ok()) GTEST_SKIP() << message_of(choose_device("cuda").status());
  }
  const torch::Device device_{torch::kCUDA, 0};
};

TEST_F(OptimizerGpu, DropsAGradientThatIsNotFinite) {
  for (const OptimizerKind kind : kOptimizers) expect_drops_a_bad_gradient(kind, device_);
}

TEST_F(OptimizerGpu, RestoredContinuesToTheBit) {
  for (const OptimizerKind kind : kOptimizers) expect_restored_continues(kind, device_, 5);
}

TEST_F(OptimizerGpu, ARunIsRepeatedToTheBit) {
  for (const OptimizerKind kind : kOptimizers) expect_repeats(kind, device_);
}

// Adam's arithmetic is the same but for the last bits of the norm. Muon's matrix products are in
// bf16 on a GPU: the change of the weights is compared, not the weights.
TEST_F(OptimizerGpu, GoesWhereTheCpuGoes) {
  for (const OptimizerKind kind : kOptimizers) {
    const Stage stage(kind);
    Flat flats[2];
    for (const int gpu : {0, 1}) {
      const torch::Device device = gpu == 1 ? device_ : torch::Device(torch::kCPU);
      flats[gpu] = stage.start(device);
      stage.train(make_optimizer(stage.spec.training, stage.layout, device).get(), flats[gpu], 0,
                  20);
    }
    const torch::Tensor start = stage.start(torch::kCPU).masters;
    const torch::Tensor expected = flats[0].masters - start,
                        measured = flats[1].masters.cpu() - start;
    const double difference = ((measured - expected).norm() / expected.norm()).item<double>();
    const double bound = kind == OptimizerKind::kMuon ? 3e-2 : 1e-5;  // docs/numerics.md
    std::printf("%s: the change of the weights differs by %.2e\n", name_of(kind).c_str(),
                difference);
    EXPECT_LT(difference, bound) << name_of(kind);
  }
}

}  // namespace
}  // namespace tessera::model
