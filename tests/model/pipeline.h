// Stage engines of a tiny model chained in one process, for the tests of the model module. No
// torch.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/prng.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

using core::BoundaryKind;
using core::RunSpec;
using ports::BackwardResult;
using ports::BoundaryPayload;
using ports::ForwardResult;
using ports::MicrobatchKey;
using ports::StageEngine;

// 4 layers of width 32, grouped-query attention 4/2, context 12, 2 sequences.
inline RunSpec tiny_spec(BoundaryKind kind, Codec codec, uint32_t stages = 3) {
  RunSpec spec;
  spec.model = {.layers = 4,
                .width = 32,
                .heads = 4,
                .kv_heads = 2,
                .ffn_width = 48,
                .vocab = 61,
                .context = 12};
  spec.pipeline.stages = stages;
  spec.training.seed = 7;
  spec.training.microbatch_size = 2;
  spec.boundary.kind = kind;
  spec.boundary.codec = codec;
  spec.boundary.rank = kind == BoundaryKind::kNone ? 0 : 8;
  spec.boundary.compression = kind == BoundaryKind::kNone ? 1 : 8;
  const Status valid = core::validate(&spec);
  EXPECT_TRUE(valid.ok()) << message_of(valid);
  return spec;
}

inline std::vector<uint32_t> random_tokens(const RunSpec& spec, uint64_t seed) {
  Prng prng(seed);
  std::vector<uint32_t> tokens(spec.training.microbatch_size * (spec.model.context + 1));
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(prng.below(spec.model.vocab));
  return tokens;
}

inline std::unique_ptr<StageEngine> engine_of(const RunSpec& spec, StageIndex stage,
                                              const std::string& device = "cpu",
                                              PassKind pass = PassKind::kBest) {
  auto engine = make_stage_engine(
      {.spec = spec, .stage = stage, .device = device, .threads = 1, .pass = pass});
  EXPECT_TRUE(engine.ok()) << message_of(engine.status());
  return *std::move(engine);
}

// A test that needs the value of a failed result has found a bug: it ends with the message.
template <class T>
T value_of(StatusOr<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << message_of(result.status());
    return T{};
  }
  return *std::move(result);
}

class Pipeline {
 public:
  explicit Pipeline(const RunSpec& spec, const std::string& device = "cpu",
                    PassKind pass = PassKind::kBest) {
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      stages_.push_back(engine_of(spec, stage, device, pass));
    }
  }
  StageEngine& stage(size_t index) { return *stages_[index]; }
  size_t size() const { return stages_.size(); }

  double forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens) {
    ForwardResult result;
    for (auto& stage : stages_) result = value_of(stage->forward(key, tokens, result.output));
    return result.loss;
  }
  void backward(const MicrobatchKey& key, bool accumulate = true) {
    BackwardResult result;
    for (size_t i = stages_.size(); i-- > 0;) {
      result = value_of(stages_[i]->backward(key, result.input_gradient, accumulate));
    }
  }
  double train(const MicrobatchKey& key, const std::vector<uint32_t>& tokens) {
    const double loss = forward(key, tokens);
    backward(key);
    return loss;
  }
  void step(double learning_rate) {
    for (auto& stage : stages_) value_of(stage->step(learning_rate));
  }
  std::vector<std::vector<float>> masters() {
    std::vector<std::vector<float>> values;
    for (auto& stage : stages_) values.push_back(stage->masters());
    return values;
  }

 private:
  std::vector<std::unique_ptr<StageEngine>> stages_;
};

}  // namespace tessera::model
