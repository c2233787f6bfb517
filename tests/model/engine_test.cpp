// The engine's contract: what is in flight, versions, refusals, state. Numbers are checked in
// reference_test.cpp.
#include <cmath>
#include <cstring>
#include <limits>

#include "model/pipeline.h"

namespace tessera::model {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr double kLearningRate = 1e-2;

double norm_of(const std::vector<float>& values) {
  double sum = 0;
  for (float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

// fp32 numbers as a payload.
BoundaryPayload payload_of(const RunSpec& spec, float value) {
  const size_t rows = spec.training.microbatch_size * spec.model.context;
  const std::vector<float> values(rows * static_cast<size_t>(boundary_width(spec)), value);
  BoundaryPayload payload;
  payload.bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return payload;
}

TEST(StageEngine, MicrobatchesInFlightKeepTheirWeightsAcrossSteps) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  const std::vector<uint32_t> first = random_tokens(spec, 1), second = random_tokens(spec, 2);

  Pipeline expected(spec);  // the second microbatch alone, at the first weights
  expected.train({2, 0}, second);

  Pipeline pipeline(spec);
  pipeline.forward({1, 0}, first);
  pipeline.forward({2, 0}, second);
  pipeline.backward({1, 0});
  pipeline.step(kLearningRate);
  for (size_t i = 0; i < pipeline.size(); ++i) EXPECT_EQ(pipeline.stage(i).weight_version(), 1u);
  pipeline.backward({2, 0});
  for (size_t i = 0; i < pipeline.size(); ++i) {
    EXPECT_EQ(pipeline.stage(i).export_state().gradient, expected.stage(i).export_state().gradient)
        << i;
  }

  Pipeline fresh(
      spec);  // at the new weights the gradient is another: the comparison above can fail
  for (size_t i = 0; i < fresh.size(); ++i)
    ASSERT_TRUE(fresh.stage(i).set_masters(pipeline.stage(i).masters()).ok());
  fresh.train({2, 0}, second);
  EXPECT_NE(fresh.stage(0).export_state().gradient, expected.stage(0).export_state().gradient);
}

TEST(StageEngine, BackwardNamesTheForwardsVersion) {
  const RunSpec spec = tiny_spec(BoundaryKind::kResidual, Codec::kFp32, 2);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  Pipeline pipeline(spec);
  StageEngine& head = pipeline.stage(0);
  EXPECT_EQ(value_of(head.forward({1, 0}, tokens, {})).weight_version, 0u);
  ASSERT_TRUE(head.set_masters(head.masters()).ok());
  EXPECT_EQ(value_of(head.forward({2, 0}, tokens, {})).weight_version, 1u);
  EXPECT_EQ(value_of(head.backward({1, 0}, payload_of(spec, 0.1f), true)).weight_version, 0u);
  EXPECT_EQ(value_of(head.backward({2, 0}, payload_of(spec, 0.1f), true)).weight_version, 1u);
  EXPECT_EQ(value_of(head.step(kLearningRate)).weight_version, 2u);
}

TEST(StageEngine, WithoutAccumulationOnlyTheInputGradientIsComputed) {
  const RunSpec spec = tiny_spec(BoundaryKind::kIota, Codec::kInt8);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  const MicrobatchKey first{9, 0}, again{9, 1}, other{10, 0};
  Pipeline pipeline(spec);
  for (const MicrobatchKey& key : {first, again, other}) pipeline.forward(key, tokens);
  StageEngine& tail = pipeline.stage(2);
  const BackwardResult accumulated = value_of(tail.backward(first, {}, true));
  const std::vector<float> gradient = tail.export_state().gradient;
  const BackwardResult repeated = value_of(tail.backward(again, {}, false));
  EXPECT_EQ(tail.accumulated_microbatches(), 1u);
  EXPECT_EQ(tail.export_state().gradient, gradient);
  // The attempt has no part in the rounding, the microbatch has.
  EXPECT_EQ(repeated.input_gradient.bytes, accumulated.input_gradient.bytes);
  EXPECT_NE(value_of(tail.backward(other, {}, false)).input_gradient.bytes,
            accumulated.input_gradient.bytes);
  EXPECT_TRUE(
      value_of(pipeline.stage(0).backward(
                   first, {0, std::string(accumulated.input_gradient.bytes.size(), 0)}, false))
          .input_gradient.bytes.empty());
  EXPECT_EQ(pipeline.stage(0).accumulated_microbatches(), 0u);
}

TEST(StageEngine, RefusesWhatDoesNotFit) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  std::vector<uint32_t> tokens = random_tokens(spec, 1);
  Pipeline pipeline(spec);
  StageEngine &head = pipeline.stage(0), &middle = pipeline.stage(1), &tail = pipeline.stage(2);
  const ForwardResult sent = value_of(head.forward({1, 0}, tokens, {}));
  EXPECT_EQ(sent.output.bytes.size(), payload_bytes(Codec::kInt4, 24, 8));

  EXPECT_EQ(head.forward({1, 0}, tokens, {}).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(head.forward({2, 0}, tokens, sent.output).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(middle.forward({1, 0}, tokens, {}).status().code(), StatusCode::kInvalidArgument);
  BoundaryPayload long_payload = sent.output;
  long_payload.bytes += '\0';
  EXPECT_EQ(middle.forward({1, 0}, tokens, long_payload).status().code(),
            StatusCode::kInvalidArgument);
  BoundaryPayload absurd = sent.output;
  absurd.exponent = 100000;
  EXPECT_EQ(middle.forward({1, 0}, tokens, absurd).status().code(), StatusCode::kInvalidArgument);

  EXPECT_EQ(head.backward({7, 0}, sent.output, true).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(head.backward({1, 1}, sent.output, true).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(head.backward({1, 0}, {}, true).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(
      head.backward({1, 0}, sent.output, true).ok());  // a refused payload leaves it in flight
  EXPECT_EQ(head.backward({1, 0}, sent.output, true).status().code(), StatusCode::kNotFound);

  const ForwardResult passed = value_of(middle.forward({1, 0}, tokens, sent.output));
  EXPECT_GT(value_of(tail.forward({1, 0}, tokens, passed.output)).loss, 0);
  EXPECT_EQ(tail.backward({1, 0}, sent.output, true).status().code(), StatusCode::kInvalidArgument);
  tail.discard({1, 0});
  EXPECT_EQ(tail.backward({1, 0}, {}, true).status().code(), StatusCode::kNotFound);

  tokens[5] = spec.model.vocab;
  const Status bad_token = head.forward({3, 0}, tokens, {}).status();
  EXPECT_EQ(bad_token.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(bad_token),
              HasSubstr("token 5 of the batch is 61, but model.vocab is 61"));
  tokens.pop_back();
  EXPECT_EQ(head.forward({3, 0}, tokens, {}).status().code(), StatusCode::kInvalidArgument);
}

TEST(StageEngine, RefusesMoreInFlightThanItsLimit) {
  const RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kBf16);
  auto head =
      value_of(make_stage_engine({.spec = spec, .stage = 0, .threads = 1, .max_in_flight = 2}));
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  EXPECT_TRUE(head->forward({1, 0}, tokens, {}).ok());
  EXPECT_TRUE(head->forward({2, 0}, tokens, {}).ok());
  EXPECT_EQ(head->forward({3, 0}, tokens, {}).status().code(), StatusCode::kResourceExhausted);
  head->discard({1, 0});
  EXPECT_TRUE(head->forward({3, 0}, tokens, {}).ok());
}

TEST(StageEngine, NumbersThatAreNotFiniteStopAtTheDoor) {
  for (Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
    const RunSpec spec = tiny_spec(BoundaryKind::kResidual, codec, 2);
    const std::vector<uint32_t> tokens = random_tokens(spec, 1);
    Pipeline pipeline(spec);
    BoundaryPayload payload = value_of(pipeline.stage(0).forward({1, 0}, tokens, {})).output;
    ASSERT_TRUE(pipeline.stage(1).forward({1, 0}, tokens, payload).ok());
    // Ones in the exponent and a mantissa bit of the last float or bfloat16, or of the first scale
    // (fp16).
    if (has_scales(codec)) {
      payload.bytes.replace(0, 2, "\x00\x7e", 2);
    } else {
      payload.bytes.replace(payload.bytes.size() - 2, 2, "\xc0\x7f", 2);
    }
    const Status activation = pipeline.stage(1).forward({2, 0}, tokens, payload).status();
    EXPECT_EQ(activation.code(), StatusCode::kDataLoss) << core::name_of(codec);
    EXPECT_THAT(message_of(activation), HasSubstr("non-finite activation"));
    EXPECT_EQ(pipeline.stage(0).backward({1, 0}, payload, true).status().code(),
              StatusCode::kDataLoss);
    EXPECT_EQ(pipeline.stage(0).accumulated_microbatches(), 0u);
  }
}

TEST(StageEngine, ALossThatIsNotFiniteIsNotKept) {
  const RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kFp32, 2);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  Pipeline pipeline(spec);
  std::vector<float> masters = pipeline.stage(1).masters();
  masters.back() = 3e38f;  // of lm_head: logits overflow
  masters[masters.size() - 2] = 3e38f;
  ASSERT_TRUE(pipeline.stage(1).set_masters(masters).ok());
  const BoundaryPayload large = payload_of(spec, 1e6f);
  EXPECT_EQ(pipeline.stage(1).forward({1, 0}, tokens, large).status().code(),
            StatusCode::kDataLoss);
  EXPECT_EQ(pipeline.stage(1).backward({1, 0}, {}, true).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(pipeline.stage(1).accumulated_microbatches(), 0u);

  masters.back() = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(pipeline.stage(1).set_masters(masters).code(), StatusCode::kDataLoss);
  masters.pop_back();
  EXPECT_EQ(pipeline.stage(1).set_masters(masters).code(), StatusCode::kInvalidArgument);
}

TEST(StageEngine, ASpikeDropsTheGradientAndKeepsTheWeights) {
  const RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kFp32, 2);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  auto head = engine_of(spec, 0);
  EXPECT_EQ(head->step(kLearningRate).status().code(), StatusCode::kFailedPrecondition);
  const std::vector<float> before = head->masters();
  ASSERT_TRUE(head->forward({1, 0}, tokens, {}).ok());
  ASSERT_TRUE(head->backward({1, 0}, payload_of(spec, 3e38f), true).ok());
  const Status spike = head->step(kLearningRate).status();
  EXPECT_EQ(spike.code(), StatusCode::kDataLoss) << message_of(spike);
  EXPECT_EQ(head->masters(), before);
  EXPECT_EQ(head->weight_version(), 0u);
  EXPECT_EQ(head->accumulated_microbatches(), 0u);

  ASSERT_TRUE(head->forward({2, 0}, tokens, {}).ok());
  ASSERT_TRUE(head->backward({2, 0}, payload_of(spec, 0.5f), true).ok());
  EXPECT_GT(value_of(head->step(kLearningRate)).gradient_norm, 0);
  EXPECT_TRUE(std::isfinite(norm_of(head->masters())));
  EXPECT_NE(head->masters(), before);
}

class StageEngineWith : public testing::TestWithParam<core::OptimizerKind> {
 protected:
  static RunSpec spec() {
    RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
    spec.training.optimizer = GetParam();
    spec.training.learning_rate = kLearningRate;  // Muon's rate follows it
    return spec;
  }
};

INSTANTIATE_TEST_SUITE_P(Optimizers, StageEngineWith,
                         testing::Values(core::OptimizerKind::kAdamW, core::OptimizerKind::kNAdam,
                                         core::OptimizerKind::kMuon),
                         [](const auto& which) -> std::string {
                           if (which.param == core::OptimizerKind::kAdamW) return "AdamW";
                           return which.param == core::OptimizerKind::kNAdam ? "NAdam" : "Muon";
                         });

TEST_P(StageEngineWith, ExportedStateContinuesIdentically) {
  const RunSpec spec = this->spec();
  Pipeline original(spec);
  const auto train = [&](Pipeline* pipeline, uint64_t microbatch) {
    return pipeline->train({microbatch, 0}, random_tokens(spec, microbatch));
  };
  for (uint64_t microbatch : {1, 2}) {
    train(&original, microbatch);
    original.step(kLearningRate);
  }
  train(&original, 3);  // half a step: the gradient travels too

  RunSpec other_spec = spec;
  other_spec.training.seed = 8;  // other initial weights: all must come from the state
  Pipeline copy(other_spec);
  for (size_t i = 0; i < copy.size(); ++i) {
    const Status imported = copy.stage(i).import_state(original.stage(i).export_state());
    ASSERT_TRUE(imported.ok()) << message_of(imported);
  }
  RunSpec same_spec = spec;
  Pipeline resumed(same_spec);
  for (size_t i = 0; i < resumed.size(); ++i) {
    ASSERT_TRUE(resumed.stage(i).import_state(copy.stage(i).export_state()).ok());
    EXPECT_EQ(resumed.stage(i).accumulated_microbatches(), 1u);
  }
  for (uint64_t microbatch : {4, 5}) {
    EXPECT_EQ(train(&original, microbatch), train(&resumed, microbatch));
    original.step(kLearningRate);
    resumed.step(kLearningRate);
  }
  EXPECT_EQ(original.masters(), resumed.masters());
}

TEST_P(StageEngineWith, Learns) {
  const RunSpec spec = this->spec();
  Pipeline pipeline(spec);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  const double first = pipeline.train({0, 0}, tokens);
  pipeline.step(kLearningRate);
  double last = first;
  for (uint64_t step = 1; step < 40; ++step) {
    last = pipeline.train({step, 0}, tokens);
    pipeline.step(kLearningRate);
  }
  EXPECT_LT(last, first / 2);
}

TEST(StageEngine, RefusesAStateOfAnotherShape) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  auto head = engine_of(spec, 0);
  const std::vector<float> before = head->masters();
  ports::LocalState state = head->export_state();
  state.masters[0] += 1;
  ports::LocalState broken = state;
  broken.first_moment.pop_back();
  EXPECT_EQ(head->import_state(broken).code(), StatusCode::kInvalidArgument);
  broken = state;
  broken.gradient_microbatches = 1;
  EXPECT_EQ(head->import_state(broken).code(), StatusCode::kInvalidArgument);
  broken = state;
  broken.second_moment[3] = -1;
  EXPECT_EQ(head->import_state(broken).code(), StatusCode::kDataLoss);
  broken = state;
  broken.optimizer_steps = UINT64_MAX;
  EXPECT_EQ(head->import_state(broken).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(head->masters(), before);
  EXPECT_TRUE(head->import_state(state).ok());
  EXPECT_EQ(head->masters(), state.masters);
}

TEST(StageEngine, LearnsThroughEveryBoundaryAndCodec) {
  for (BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kIota, BoundaryKind::kResidual,
                            BoundaryKind::kAnchored}) {
    for (Codec codec : {Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
      const RunSpec spec = tiny_spec(kind, codec);
      Pipeline pipeline(spec);
      const std::vector<uint32_t> tokens = random_tokens(spec, 1);
      double first = 0, last = 0;
      for (uint64_t step = 0; step < 40; ++step) {
        last = pipeline.train({step, 0}, tokens);
        if (step == 0) first = last;
        pipeline.step(kLearningRate);
      }
      EXPECT_NEAR(first, std::log(61.0), 0.3);
      EXPECT_LT(last, first / 2) << core::name_of(kind) << " " << core::name_of(codec);
    }
  }
}

TEST(ChooseDevice, ExplainsWhatItCannotGive) {
  EXPECT_EQ(value_of(choose_device("cpu")), "cpu");
  EXPECT_THAT(value_of(choose_device("auto")), testing::AnyOf("cpu", "cuda:0"));
  for (const char* unknown : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda1"}) {
    EXPECT_EQ(choose_device(unknown).status().code(), StatusCode::kInvalidArgument) << unknown;
  }
  EXPECT_EQ(choose_device("cuda:4096").status().code(), StatusCode::kFailedPrecondition);
  EXPECT_GT(device_memory_bytes("cpu"), uint64_t{1} << 28);
  EXPECT_EQ(device_memory_bytes("cuda:4096"), 0u);
  EXPECT_EQ(make_stage_engine({.spec = tiny_spec(BoundaryKind::kNone, Codec::kFp32), .stage = 3})
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tessera::model
