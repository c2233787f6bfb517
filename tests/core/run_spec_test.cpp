#include "tessera/core/run_spec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace tessera::core {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(RunSpec, TheDefaultsAreValidAndTheRestIsDerived) {
  RunSpec spec;
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(spec.pipeline.stage_layers, (std::vector<uint32_t>{2, 2, 2}));
  EXPECT_EQ(spec.boundary.rank, 4u);
}

TEST(RunSpec, ValidateIsIdempotentAlsoAfterTheWire) {
  RunSpec spec;
  ASSERT_TRUE(validate(&spec).ok());
  const std::string bytes = encode(spec);
  RunSpec received;
  ASSERT_TRUE(decode(bytes, &received));
  ASSERT_TRUE(validate(&received).ok());
  EXPECT_EQ(encode(received), bytes);
}

TEST(RunSpec, EarlierStagesTakeTheExtraLayers) {
  RunSpec spec;
  spec.model.layers = 8;
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(spec.pipeline.stage_layers, (std::vector<uint32_t>{3, 3, 2}));
  uint32_t next = 0;
  for (StageIndex stage = 0; stage < 3; ++stage) {
    const LayerRange range = layers_of(spec, stage);
    EXPECT_EQ(range.begin, next);
    EXPECT_EQ(range.end - range.begin, spec.pipeline.stage_layers[stage]);
    next = range.end;
  }
  EXPECT_EQ(next, 8u);
}

TEST(RunSpec, UnevenStagesByHand) {
  RunSpec spec;
  spec.pipeline.stage_layers = {1, 4, 1};
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(layers_of(spec, 1).begin, 1u);
  EXPECT_EQ(layers_of(spec, 1).end, 5u);
}

struct Refusal {
  std::function<void(RunSpec*)> change;
  std::string message;
};

const Refusal kRefusals[] = {
    {[](RunSpec* s) { s->name = "../x"; },
     "run.name: not allowed; it must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a "
     "letter or "
     "digit"},
    {[](RunSpec* s) { s->name = std::string(65, 'a'); },
     "run.name: not allowed; it must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a "
     "letter or "
     "digit"},
    {[](RunSpec* s) { s->model.layers = 0; },
     "model.layers: 0 is not allowed; it must be 1 to 1024"},
    {[](RunSpec* s) { s->model.width = 65537; },
     "model.width: 65537 is not allowed; it must be 2 to 65536"},
    {[](RunSpec* s) { s->model.rope_theta = kNan; },
     "model.rope_theta: nan is not allowed; it must be 1 to 1000000000"},
    {[](RunSpec* s) { s->model.norm_epsilon = 0; },
     "model.norm_epsilon: 0 is not allowed; it must be above 0 and at most 0.1"},
    {[](RunSpec* s) { s->model.init_std = kInfinity; },
     "model.init_std: inf is not allowed; it must be above 0 and at most 1"},
    {[](RunSpec* s) { s->model.heads = 3; },
     "model.heads: model.width 256 is not a multiple of 3; every head needs the same width"},
    {[](RunSpec* s) { s->model.heads = s->model.kv_heads = 256; },
     "model.heads: 256 heads at model.width 256 give a head width of 1, but rotary positions turn "
     "pairs of "
     "numbers and need an even one"},
    {[](RunSpec* s) { s->model.kv_heads = 3; },
     "model.kv_heads: 3 does not divide model.heads 4; every key-value head serves the same number "
     "of heads"},
    {[](RunSpec* s) {
       s->pipeline.stages = 65;
       s->model.layers = 100;
     },
     "pipeline.stages: 65 is not allowed; it must be 1 to 64"},
    {[](RunSpec* s) { s->pipeline.stages = 7; },
     "pipeline.stages: 7 stages can't share model.layers 6; every stage needs at least 1 layer"},
    {[](RunSpec* s) {
       s->pipeline.stage_layers = {3, 3};
     },
     "pipeline.stage_layers: 2 entries for pipeline.stages 3; give one for each stage, or [] for "
     "an even split"},
    {[](RunSpec* s) {
       s->pipeline.stage_layers = {3, 0, 3};
     },
     "pipeline.stage_layers: stage 1 has 0 layers; every stage needs at least 1"},
    {[](RunSpec* s) {
       s->pipeline.stage_layers = {UINT32_MAX, 5, 2};
     },  // 6 modulo 2^32
     "pipeline.stage_layers: the entries add up to 4294967302, but model.layers is 6"},
    {[](RunSpec* s) { s->pipeline.random_pathway_share = 1.01; },
     "pipeline.random_pathway_share: 1.01 is not allowed; it must be 0 to 1"},
    {[](RunSpec* s) { s->training.steps = 0; },
     "training.steps: 0 is not allowed; it must be 1 to 100000000"},
    {[](RunSpec* s) { s->training.nadam_momentum_decay = -0.1; },
     "training.nadam_momentum_decay: -0.1 is not allowed; it must be 0 to 1"},
    {[](RunSpec* s) { s->training.muon_learning_rate = 0; },
     "training.muon_learning_rate: 0 is not allowed; it must be above 0 and at most 10"},
    {[](RunSpec* s) { s->training.muon_momentum = 1; },
     "training.muon_momentum: 1 is not allowed; it must be at least 0 and below 1"},
    {[](RunSpec* s) { s->training.muon_weight_decay = kNan; },
     "training.muon_weight_decay: nan is not allowed; it must be 0 to 10"},
    {[](RunSpec* s) { s->training.optimizer = static_cast<OptimizerKind>(3); },
     "training.optimizer: 3 stands for no known choice; the sender's version is another one"},
    {[](RunSpec* s) { s->training.beta2 = 1; },
     "training.beta2: 1 is not allowed; it must be at least 0 and below 1"},
    {[](RunSpec* s) { s->training.learning_rate = -1e-3; },
     "training.learning_rate: -0.001 is not allowed; it must be above 0 and at most 10"},
    {[](RunSpec* s) { s->training.decay = static_cast<LrDecay>(3); },
     "training.decay: 3 stands for no known choice; the sender's version is another one"},
    {[](RunSpec* s) {
       s->training.microbatch_size = 4096;
       s->model.context = 1024;
     },
     "training.microbatch_size: 4096 sequences of model.context 1024 are 4194304 tokens, more than "
     "the 1048576 "
     "that a microbatch may have; raise training.microbatches_per_step instead"},
    {[](RunSpec* s) {
       s->boundary.kind = BoundaryKind::kNone;
       s->boundary.codec = Codec::kFp32;
       s->training.microbatch_size = 4096;
       s->model.context = 256;
       s->model.width = 512;
     },
     "training.microbatch_size: a boundary payload of 1048576 tokens x 512 numbers in fp32 has "
     "2147483648 "
     "bytes, more than the 1073741824 that a frame may have; lower it, or compress more"},
    {[](RunSpec* s) { s->boundary.kind = static_cast<BoundaryKind>(9); },
     "boundary.kind: 9 stands for no known choice; the sender's version is another one"},
    {[](RunSpec* s) { s->boundary.compression = 0.5; },
     "boundary.compression: 0.5 is not allowed; it must be 1 to 65536"},
    {[](RunSpec* s) { s->boundary.rank = 257; },
     "boundary.rank: 257 is more than model.width 256, so it would carry nothing more; 0 picks it "
     "from "
     "boundary.compression"},
    {[](RunSpec* s) { s->boundary.anchor_rank = 257; },
     "boundary.anchor_rank: 257 is more than model.width 256, so the factors would be larger than "
     "the table; 0 "
     "takes the full table"},
    {[](RunSpec* s) { s->model.width = 128; },
     "boundary.compression: 128x can't be had with boundary.codec int4 at model.width 128: it "
     "leaves 16 bits a "
     "token, and the smallest boundary needs 24; use model.width 192 or more, or "
     "boundary.compression 85.33 or "
     "less, or boundary.codec bf16"},
    {[](RunSpec* s) { s->boundary.compression = 1000; },
     "boundary.compression: 1000x can't be had with boundary.codec int4 at model.width 256: it "
     "leaves 4.096 "
     "bits a token, and the smallest boundary needs 24; use model.width 1504 or more, or "
     "boundary.compression "
     "170.66 or less"},
    {[](RunSpec* s) { s->merge.quorum = 0; },
     "merge.quorum: 0 is not allowed; it must be above 0 and at most 1"},
    {[](RunSpec* s) { s->merge.optimizer_moments = static_cast<MergeMoments>(3); },
     "merge.optimizer_moments: 3 stands for no known choice; the sender's version is another one"},
    {[](RunSpec* s) { s->merge.block_values = 255; },
     "merge.block_values: 255 is not allowed; it must be 256 to 262144"},
    {[](RunSpec* s) { s->merge.block_values = 262145; },
     "merge.block_values: 262145 is not allowed; it must be 256 to 262144"},
    {[](RunSpec* s) { s->merge.max_staleness = 65; },
     "merge.max_staleness: 65 is not allowed; it must be 1 to 64"},
    {[](RunSpec* s) { s->timeouts.lease_ms = 9; },
     "timeouts.lease_ms: 9 is not allowed; it must be 10 to 86400000"},
    {[](RunSpec* s) { s->timeouts.miner_lost_ms = 399; },
     "timeouts.miner_lost_ms: 399 is less than twice timeouts.sync_ms 200; one late report would "
     "make a healthy "
     "miner count as lost"},
    {[](RunSpec* s) { s->checkpoint.keep = 0; },
     "checkpoint.keep: 0 is not allowed; it must be 1 to 1000"},
    {[](RunSpec* s) { s->audit.segment_steps = 0; },
     "audit.segment_steps: 0 is not allowed; it must be 1 to 4096"},
    {[](RunSpec* s) { s->audit.share = 1.5; }, "audit.share: 1.5 is not allowed; it must be 0 to 1"},
};

TEST(RunSpec, RefusalsNameTheKeyAndTheRemedy) {
  for (const Refusal& refusal : kRefusals) {
    RunSpec spec;
    refusal.change(&spec);
    const std::string before = encode(spec);
    const Status status = validate(&spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(message_of(status), refusal.message);
    EXPECT_EQ(encode(spec), before) << "a refused spec is left as it was: " << refusal.message;
  }
}

TEST(BoundaryRank, KnownPoints) {
  EXPECT_EQ(boundary_rank(256, Codec::kInt4, 128), 4u);
  EXPECT_EQ(boundary_rank(768, Codec::kInt4, 128), 20u);
  EXPECT_EQ(boundary_rank(768, Codec::kBf16, 128), 6u);
  EXPECT_EQ(boundary_rank(768, Codec::kBf16, 4), 192u);
  EXPECT_EQ(boundary_rank(256, Codec::kInt8, 128), 2u);
  EXPECT_EQ(boundary_rank(256, Codec::kBf16, 1), 256u);
  EXPECT_EQ(boundary_rank(128, Codec::kInt4, 128), 0u);
  for (const double absurd : {0.0, -1.0, kNan, kInfinity}) {
    EXPECT_EQ(boundary_rank(256, Codec::kInt4, absurd), 0u) << absurd;
  }
  EXPECT_EQ(boundary_rank(65536, Codec::kInt4, 1e-300), UINT32_MAX);
}

// Exhaustive over a small world: the payload keeps the promised ratio, and one number more would
// break it.
TEST(BoundaryRank, IsTheLargestThatKeepsTheRatio) {
  for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
    for (uint32_t width = 2; width <= 1024; width += 2) {
      for (const double compression : {1.0, 1.5, 3.0, 32.0, 100.0, 128.0}) {
        const uint32_t rank = boundary_rank(width, codec, compression);
        const double budget_bytes = 2.0 * width / compression;
        if (rank > 0) {
          EXPECT_LE(payload_bytes(codec, 1, rank), budget_bytes) << width;
        }
        EXPECT_GT(payload_bytes(codec, 1, rank + 1), budget_bytes)
            << width << " " << name_of(codec) << " " << compression;
      }
    }
  }
}

TEST(Boundary, RankIsNeverMoreThanTheWidth) {
  RunSpec spec;
  spec.boundary.compression = 1;
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(spec.boundary.rank, 256u);
}

TEST(Boundary, NoneSendsTheWidthWhateverElseIsSet) {
  RunSpec spec;
  spec.model.width = 64;  // too narrow for 128x
  spec.boundary.kind = BoundaryKind::kNone;
  spec.boundary.rank = 5;
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(spec.boundary.rank, 64u);
}

TEST(Boundary, ARankByHandGoesBeforeTheCompression) {
  RunSpec spec;
  spec.boundary.rank = 7;
  ASSERT_TRUE(validate(&spec).ok());
  EXPECT_EQ(spec.boundary.rank, 7u);
}

TEST(Boundary, TheRemediesOfTheErrorWork) {
  RunSpec wider, weaker, other_codec;
  wider.model.width = 192;
  weaker.model.width = 128;
  weaker.boundary.compression = 85.33;
  other_codec.model.width = 128;
  other_codec.boundary.codec = Codec::kBf16;
  for (RunSpec* spec : {&wider, &weaker, &other_codec}) {
    EXPECT_TRUE(validate(spec).ok());
    EXPECT_GE(spec->boundary.rank, 1u);
  }
}

TEST(LearningRate, WarmsUpThenDecaysToTheFloor) {
  TrainingSpec training;
  training.steps = 100;
  training.warmup_steps = 20;
  training.learning_rate = 1;
  training.min_learning_rate_ratio = 0.1;
  for (const LrDecay decay : {LrDecay::kLinear, LrDecay::kCosine}) {
    training.decay = decay;
    EXPECT_DOUBLE_EQ(learning_rate_at(training, 0), 1.0 / 20);
    EXPECT_DOUBLE_EQ(learning_rate_at(training, 19), 1);
    EXPECT_DOUBLE_EQ(learning_rate_at(training, 20), 1);
    EXPECT_DOUBLE_EQ(learning_rate_at(training, 60), 0.55);  // half way, for both forms
    EXPECT_DOUBLE_EQ(learning_rate_at(training, 100), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate_at(training, UINT64_MAX), 0.1);
    for (uint64_t step = 21; step <= 100; ++step) {
      EXPECT_LT(learning_rate_at(training, step), learning_rate_at(training, step - 1)) << step;
    }
  }
  EXPECT_NEAR(learning_rate_at(training, 40), 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2, 1e-12);
}

TEST(LearningRate, ConstantStaysAndNoWarmupStartsAtThePeak) {
  TrainingSpec training;
  training.decay = LrDecay::kConstant;
  training.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate_at(training, 0), training.learning_rate);
  EXPECT_DOUBLE_EQ(learning_rate_at(training, 1000000), training.learning_rate);
}

TEST(LearningRate, AWarmupLongerThanTheRunNeverReachesThePeak) {
  TrainingSpec training;
  training.steps = 10;
  training.warmup_steps = 20;
  EXPECT_DOUBLE_EQ(learning_rate_at(training, 9), training.learning_rate / 2);
}

}  // namespace
}  // namespace tessera::core
