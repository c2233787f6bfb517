// The engines against a plain LibTorch model (reference_model.h): losses, gradients, weights after
// optimizer steps, and payloads against plain quantisation.
#include <string>

#include "model/pipeline.h"
#include "model/reference_model.h"
#include "tessera/kernels/codec.h"

namespace tessera::model {
namespace {

torch::Tensor tensor_of(const std::vector<float>& values) {
  return torch::tensor(torch::ArrayRef<float>(values), torch::kFloat);
}

torch::Tensor token_matrix(const RunSpec& spec, const std::vector<uint32_t>& tokens) {
  return torch::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), torch::kLong)
      .view({spec.training.microbatch_size, spec.model.context + 1});
}

double relative_difference(const torch::Tensor& measured, const torch::Tensor& expected) {
  return ((measured - expected).norm() / expected.norm()).item<double>();
}

struct Case {
  BoundaryKind kind;
  uint32_t stages;
  uint32_t anchor_rank = 0;
  bool embedding_norm = true;
};

RunSpec spec_of(const Case& wanted) {
  RunSpec spec = tiny_spec(wanted.kind, Codec::kFp32, wanted.stages);
  spec.boundary.anchor_rank = wanted.anchor_rank;
  spec.model.embedding_norm = wanted.embedding_norm;
  // Adam divides by the gradient's size: with the usual 1e-8, numbers whose gradient is rounding
  // noise would move by a whole learning rate in a direction of chance.
  spec.training.epsilon = 1e-5;
  spec.training.clip_norm = 0.5;
  return spec;
}

std::vector<Case> cases() {
  return {{BoundaryKind::kNone, 1},           {BoundaryKind::kNone, 2},
          {BoundaryKind::kNone, 3, 0, false}, {BoundaryKind::kIota, 2},
          {BoundaryKind::kIota, 4},           {BoundaryKind::kResidual, 3},
          {BoundaryKind::kAnchored, 3},       {BoundaryKind::kAnchored, 3, 6}};
}

std::string name_of(const Case& which) {
  return std::string(core::name_of(which.kind)) + ", " + std::to_string(which.stages) +
         " stages, anchor rank " + std::to_string(which.anchor_rank);
}

// Tolerance: 1e-5 relative (L2 over a stage). Sums in another order differ in fp32's last bits.
TEST(Reference, LossAndGradients) {
  for (const Case& which : cases()) {
    SCOPED_TRACE(name_of(which));
    const RunSpec spec = spec_of(which);
    Pipeline pipeline(spec);
    ReferenceModel reference(spec, pipeline.masters());
    const std::vector<uint32_t> tokens = random_tokens(spec, 5);
    const torch::Tensor loss = reference.loss(token_matrix(spec, tokens));
    loss.backward();
    EXPECT_NEAR(pipeline.train({1, 0}, tokens), loss.item<double>(), 2e-6);
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      const torch::Tensor measured = tensor_of(pipeline.stage(stage).export_state().gradient);
      const torch::Tensor expected = reference.flat(stage, /*gradients=*/true);
      EXPECT_LT(relative_difference(measured, expected), 1e-5) << stage;
      for (const ports::TensorLayout& tensor : pipeline.stage(stage).layout()) {
        const auto part = [&](const torch::Tensor& flat) {
          return flat.narrow(0, static_cast<int64_t>(tensor.offset),
                             static_cast<int64_t>(tensor.count));
        };
        ASSERT_GT(part(expected).norm().item<double>(), 0) << tensor.name;
        EXPECT_LT(relative_difference(part(measured), part(expected)), 5e-5) << tensor.name;
      }
    }
  }
}

// 4 optimizer steps of 3 microbatches: losses within 1e-5, gradient norms within 1e-5 relative,
// every weight within 2e-6 (a step moves a weight by up to 1e-3).
TEST(Reference, TrainingGivesTheSameWeights) {
  constexpr double kLearningRate = 1e-3;
  for (const Case& which : cases()) {
    SCOPED_TRACE(name_of(which));
    const RunSpec spec = spec_of(which);
    Pipeline pipeline(spec);
    ReferenceModel reference(spec, pipeline.masters());
    uint64_t microbatch = 0;
    for (int step = 0; step < 4; ++step) {
      for (int i = 0; i < 3; ++i, ++microbatch) {
        const std::vector<uint32_t> tokens = random_tokens(spec, microbatch);
        const torch::Tensor loss = reference.loss(token_matrix(spec, tokens));
        (loss / 3).backward();
        EXPECT_NEAR(pipeline.train({microbatch, 0}, tokens), loss.item<double>(), 1e-5);
      }
      const std::vector<double> norms = reference.step(kLearningRate);
      for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
        const ports::StepResult result = value_of(pipeline.stage(stage).step(kLearningRate));
        EXPECT_NEAR(result.gradient_norm, norms[stage], 1e-5 * norms[stage]);
      }
    }
    const std::vector<std::vector<float>> masters = pipeline.masters();
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      const torch::Tensor expected = reference.flat(stage, /*gradients=*/false);
      EXPECT_LT((tensor_of(masters[stage]) - expected).abs().max().item<double>(), 2e-6) << stage;
      const torch::Tensor start = tensor_of(initial_values(spec, stage));
      EXPECT_GT((start - expected).abs().max().item<double>(), 2e-3)
          << stage;  // the steps were real ones
    }
  }
}

torch::Tensor decoded(const RunSpec& spec, const BoundaryPayload& payload) {
  const int64_t rows = static_cast<int64_t>(spec.training.microbatch_size) * spec.model.context;
  torch::Tensor values = torch::empty({rows, boundary_width(spec)});
  kernels::decode_cpu({.payload = reinterpret_cast<const uint8_t*>(payload.bytes.data()),
                       .exponent = payload.exponent,
                       .rows = rows,
                       .width = boundary_width(spec),
                       .codec = spec.boundary.codec,
                       .output = values.data_ptr<float>()});
  return values;
}

// What the head sends, with the numbers themselves taken from the fp32 codec. The scale is fp16 as
// on the wire, which for scales of this size is the same as rounding amax / q.
TEST(Reference, PayloadsArePlainQuantisation) {
  for (BoundaryKind kind :
       {BoundaryKind::kNone, BoundaryKind::kResidual, BoundaryKind::kAnchored}) {
    const RunSpec exact_spec = tiny_spec(kind, Codec::kFp32);
    const std::vector<uint32_t> tokens = random_tokens(exact_spec, 3);
    const torch::Tensor z =
        decoded(exact_spec, value_of(engine_of(exact_spec, 0)->forward({1, 0}, tokens, {})).output);
    for (Codec codec : {Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
      SCOPED_TRACE(std::string(core::name_of(kind)) + " " + core::name_of(codec));
      const RunSpec spec = tiny_spec(kind, codec);
      const torch::Tensor measured =
          decoded(spec, value_of(engine_of(spec, 0)->forward({1, 0}, tokens, {})).output);
      if (codec == Codec::kBf16) {
        const torch::Tensor expected = z.to(torch::kBFloat16).to(torch::kFloat);
        EXPECT_TRUE(torch::equal(measured, expected));
        continue;
      }
      const double levels = codec == Codec::kInt8 ? 127 : 7;
      const torch::Tensor scale =
          (z.abs().amax(-1, /*keepdim=*/true) / levels).to(torch::kHalf).to(torch::kFloat);
      const torch::Tensor expected = torch::clamp(torch::round(z / scale), -levels, levels) * scale;
      const torch::Tensor steps = ((measured - expected).abs() / scale);
      EXPECT_LT(steps.max().item<double>(), 1.001);  // a tie may round the other way,
      EXPECT_LT((steps > 1e-4).to(torch::kFloat).mean().item<double>(),
                0.01);  // but hardly any does
    }
  }
}

// Integer gradients are rounded stochastically: less than a step off each, and right on average
// over the microbatches.
TEST(Reference, GradientPayloadsAreUnbiased) {
  const auto gradient = [](Codec codec, uint64_t microbatch) {
    const RunSpec spec = tiny_spec(BoundaryKind::kResidual, codec, 2);
    const std::vector<uint32_t> tokens = random_tokens(spec, 3);
    const size_t rows = spec.training.microbatch_size * spec.model.context;
    std::vector<float> z(rows * 8);
    Prng prng(4);
    for (float& value : z)
      value = static_cast<float>(static_cast<int>(prng.below(15)) - 7);  // exact in every codec
    for (size_t row = 0; row < rows; ++row) z[row * 8] = 7;
    BoundaryPayload input;
    input.bytes.resize(payload_bytes(codec, rows, 8));
    kernels::encode_cpu({.input = z.data(),
                         .rows = static_cast<int64_t>(rows),
                         .width = 8,
                         .codec = codec,
                         .payload = reinterpret_cast<uint8_t*>(input.bytes.data()),
                         .exponent = &input.exponent});
    auto tail = engine_of(spec, 1);
    value_of(tail->forward({microbatch, 0}, tokens, input));
    return decoded(spec, value_of(tail->backward({microbatch, 0}, {}, false)).input_gradient);
  };
  const torch::Tensor exact = gradient(Codec::kFp32, 0);
  const torch::Tensor step = exact.abs().amax(-1, /*keepdim=*/true) / 7;
  torch::Tensor mean = torch::zeros_like(exact);
  constexpr int kMicrobatches = 48;
  for (int i = 0; i < kMicrobatches; ++i) {
    const torch::Tensor rounded = gradient(Codec::kInt4, static_cast<uint64_t>(i));
    EXPECT_LT(((rounded - exact).abs() / step).max().item<double>(), 1.01);
    mean += rounded / kMicrobatches;
  }
  // The mean of 48 roundings, each of deviation up to half a step: 0.07 steps. Nearest rounding
  // would stay at up to 0.5.
  EXPECT_LT(((mean - exact) / step).pow(2).mean().sqrt().item<double>(), 0.085);
}

}  // namespace
}  // namespace tessera::model
