// The pass written by hand against the one by autograd: the same losses, boundary tensors and
// gradients from the same weights. On a CPU, in fp32, where the kernels' references define them.
#include <cmath>

#include "model/pipeline.h"

namespace tessera::model {
namespace {

using core::Recompute;

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    scale += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / scale);
}

struct Variant {
  const char* name;
  BoundaryKind kind;
  uint32_t stages;
  uint32_t anchor_rank;
  bool embedding_norm;
};

class FusedPass : public testing::TestWithParam<Variant> {
 protected:
  static RunSpec spec_of(const Variant& variant, Recompute recompute) {
    RunSpec spec = tiny_spec(variant.kind, Codec::kFp32, variant.stages);
    spec.boundary.anchor_rank = variant.anchor_rank;
    spec.model.embedding_norm = variant.embedding_norm;
    spec.training.recompute = recompute;
    EXPECT_TRUE(core::validate(&spec).ok());
    return spec;
  }
};

TEST_P(FusedPass, GradientsAreThoseOfAutograd) {
  for (const Recompute recompute : {Recompute::kOff, Recompute::kBlock, Recompute::kFull}) {
    const RunSpec spec = spec_of(GetParam(), recompute);
    Pipeline reference(spec, "cpu", PassKind::kAutograd), fused(spec, "cpu", PassKind::kFused);
    // Two microbatches: the first overwrites the accumulator, the second adds to it.
    for (uint64_t microbatch = 0; microbatch < 2; ++microbatch) {
      const std::vector<uint32_t> tokens = random_tokens(spec, microbatch);
      const double expected = reference.forward({microbatch, 0}, tokens);
      EXPECT_NEAR(fused.forward({microbatch, 0}, tokens), expected, 1e-5 * expected);
      reference.backward({microbatch, 0});
      fused.backward({microbatch, 0});
      for (size_t stage = 0; stage < fused.size(); ++stage) {
        EXPECT_LT(relative_distance(fused.stage(stage).export_state().gradient,
                                    reference.stage(stage).export_state().gradient),
                  1e-5)
            << "stage " << stage << " microbatch " << microbatch;
      }
    }
    reference.step(1e-3);
    fused.step(1e-3);
    const std::vector<uint32_t> tokens = random_tokens(spec, 9);
    EXPECT_NEAR(fused.forward({9, 0}, tokens), reference.forward({9, 0}, tokens), 1e-4);
  }
}

TEST_P(FusedPass, WithoutAccumulationTheInputGradientIsTheSame) {
  const RunSpec spec = spec_of(GetParam(), Recompute::kOff);
  Pipeline fused(spec, "cpu", PassKind::kFused);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  fused.forward({1, 0}, tokens);
  fused.forward({1, 1}, tokens);
  BackwardResult first, again;
  for (size_t stage = fused.size(); stage-- > 0;) {
    first = value_of(fused.stage(stage).backward({1, 0}, first.input_gradient, true));
    again = value_of(fused.stage(stage).backward({1, 1}, again.input_gradient, false));
    EXPECT_EQ(again.input_gradient.bytes, first.input_gradient.bytes) << stage;
    EXPECT_EQ(fused.stage(stage).accumulated_microbatches(), 1u);
  }
}

// Several microbatches under way over an optimizer step: each keeps the weights of its forward.
TEST_P(FusedPass, MicrobatchesInFlightKeepTheirWeights) {
  const RunSpec spec = spec_of(GetParam(), Recompute::kFull);
  Pipeline expected(spec, "cpu", PassKind::kFused), stepped(spec, "cpu", PassKind::kFused);
  expected.train({2, 0}, random_tokens(spec, 2));
  expected.train({3, 0}, random_tokens(spec, 3));
  for (uint64_t microbatch = 1; microbatch <= 3; ++microbatch) {
    stepped.forward({microbatch, 0}, random_tokens(spec, microbatch));
  }
  stepped.backward({1, 0});
  stepped.step(1e-2);
  stepped.backward({2, 0});
  stepped.backward({3, 0});
  for (size_t stage = 0; stage < stepped.size(); ++stage) {
    EXPECT_EQ(stepped.stage(stage).export_state().gradient,
              expected.stage(stage).export_state().gradient)
        << stage;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, FusedPass,
    testing::Values(Variant{"OneStage", BoundaryKind::kNone, 1, 0, true},
                    Variant{"None", BoundaryKind::kNone, 3, 0, false},
                    Variant{"Residual", BoundaryKind::kResidual, 3, 0, true},
                    Variant{"Anchored", BoundaryKind::kAnchored, 3, 0, true},
                    Variant{"AnchoredFactorised", BoundaryKind::kAnchored, 2, 8, true}),
    [](const testing::TestParamInfo<Variant>& variant) { return variant.param.name; });

// Products of 8-bit floats, which a CPU imitates.
RunSpec fp8_spec(Recompute recompute = Recompute::kOff) {
  RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  spec.model.context = 16;
  spec.training.recompute = recompute;
  spec.training.matrix_products = core::MatrixProducts::kFp8;
  EXPECT_TRUE(core::validate(&spec).ok());
  return spec;
}

TEST(Fp8Products, GradientsAreNearThoseOfFp32) {
  const RunSpec spec = fp8_spec();
  RunSpec wide = spec;
  wide.training.matrix_products = core::MatrixProducts::kBf16;
  Pipeline fp8(spec), fp32(wide, "cpu", PassKind::kFused);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  EXPECT_NEAR(fp8.train({1, 0}, tokens), fp32.train({1, 0}, tokens), 0.05);
  for (size_t stage = 0; stage < fp8.size(); ++stage) {
    const double distance = relative_distance(fp8.stage(stage).export_state().gradient,
                                              fp32.stage(stage).export_state().gradient);
    EXPECT_LT(distance, 0.15) << stage;  // a wrong factor changes it by more
    EXPECT_GT(distance, 1e-4) << stage;  // they are 8-bit floats; most of the norm is the anchors'
  }
}

TEST(Fp8Products, RecomputationHasTheSameBits) {
  std::vector<std::vector<std::vector<float>>> runs;
  for (const Recompute recompute : {Recompute::kOff, Recompute::kBlock, Recompute::kFull}) {
    const RunSpec spec = fp8_spec(recompute);
    Pipeline pipeline(spec);
    for (uint64_t microbatch = 0; microbatch < 4; ++microbatch) {
      pipeline.train({microbatch, 0}, random_tokens(spec, microbatch));
      if (microbatch % 2 == 1) pipeline.step(1e-2);
    }
    runs.push_back(pipeline.masters());
  }
  EXPECT_EQ(runs[1], runs[0]);
  EXPECT_EQ(runs[2], runs[0]);
}

TEST(Fp8Products, Learn) {
  const RunSpec spec = fp8_spec();
  Pipeline pipeline(spec);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  double first = 0, last = 0;
  for (uint64_t step = 0; step < 40; ++step) {
    last = pipeline.train({step, 0}, tokens);
    if (step == 0) first = last;
    pipeline.step(1e-2);
  }
  EXPECT_LT(last, first / 2);
}

TEST(Fp8Products, AreRefusedWhereTheyCannotBe) {
  RunSpec spec = fp8_spec();
  spec.model.context = 12;
  EXPECT_EQ(core::validate(&spec).code(), absl::StatusCode::kInvalidArgument);
  spec = fp8_spec();
  EXPECT_EQ(make_stage_engine({.spec = spec, .stage = 0, .device = "cpu", .threads = 1, .pass = PassKind::kAutograd})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  BoxOptions box;
  box.devices = {"cpu", "cpu"};
  EXPECT_EQ(make_stage_engine({.spec = spec, .stage = 0, .device = "cpu", .threads = 1, .box = box}).status().code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace tessera::model
