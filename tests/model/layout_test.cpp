#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "tessera/base/crypto.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

using core::BoundaryKind;
using core::RunSpec;

RunSpec spec_of(BoundaryKind kind, uint32_t stages, uint32_t anchor_rank = 0) {
  RunSpec spec;
  spec.model = {.layers = 4,
                .width = 64,
                .heads = 4,
                .kv_heads = 2,
                .ffn_width = 96,
                .vocab = 300,
                .context = 8};
  spec.pipeline.stages = stages;
  spec.training.seed = 3;
  spec.boundary.kind = kind;
  spec.boundary.rank = kind == BoundaryKind::kNone ? 0 : 8;
  spec.boundary.anchor_rank = anchor_rank;
  spec.boundary.compression = kind == BoundaryKind::kNone ? 1 : 8;
  const Status valid = core::validate(&spec);
  EXPECT_TRUE(valid.ok()) << message_of(valid);
  return spec;
}

std::vector<std::string> names_of(const std::vector<ports::TensorLayout>& layout) {
  std::vector<std::string> names;
  for (const ports::TensorLayout& tensor : layout) names.push_back(tensor.name);
  return names;
}

// Every tensor of the run by name.
std::map<std::string, std::vector<float>> tensors_of(const RunSpec& spec) {
  std::map<std::string, std::vector<float>> tensors;
  for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
    const std::vector<float> values = initial_values(spec, stage);
    for (const ports::TensorLayout& tensor : stage_layout(spec, stage)) {
      const auto begin = values.begin() + static_cast<int64_t>(tensor.offset);
      const bool fresh =
          tensors
              .emplace(tensor.name,
                       std::vector<float>(begin, begin + static_cast<int64_t>(tensor.count)))
              .second;
      EXPECT_TRUE(fresh) << tensor.name << " is in two stages";
    }
  }
  return tensors;
}

double deviation_of(const std::vector<float>& values) {
  double sum = 0;
  for (float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

TEST(StageLayout, NamesInOrder) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, 2, 16);
  const std::vector<std::string> names = names_of(stage_layout(spec, 1));
  ASSERT_EQ(names.size(), 4u + 2 * 9 + 2);
  EXPECT_THAT(
      std::vector<std::string>(names.begin(), names.begin() + 13),
      testing::ElementsAre(
          "boundary.0.anchor", "boundary.0.anchor_basis", "boundary.0.decoder", "boundary.0.gain",
          "model.layers.2.input_layernorm.weight", "model.layers.2.self_attn.q_proj.weight",
          "model.layers.2.self_attn.k_proj.weight", "model.layers.2.self_attn.v_proj.weight",
          "model.layers.2.self_attn.o_proj.weight",
          "model.layers.2.post_attention_layernorm.weight", "model.layers.2.mlp.gate_proj.weight",
          "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"));
  EXPECT_EQ(names[names.size() - 2], "model.norm.weight");
  EXPECT_EQ(names.back(), "lm_head.weight");
  EXPECT_EQ(stage_layout(spec, 0).back().name, "boundary.0.encoder");
}

TEST(StageLayout, TilesTheFlatVector) {
  for (BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kIota, BoundaryKind::kResidual,
                            BoundaryKind::kAnchored}) {
    const RunSpec spec = spec_of(kind, 3);
    for (StageIndex stage = 0; stage < 3; ++stage) {
      const std::vector<ports::TensorLayout> layout = stage_layout(spec, stage);
      uint64_t next = 0;
      for (const ports::TensorLayout& tensor : layout) {
        EXPECT_EQ(tensor.offset, next) << tensor.name;
        uint64_t count = 1;
        for (int64_t size : tensor.shape) count *= static_cast<uint64_t>(size);
        EXPECT_EQ(tensor.count, count) << tensor.name;
        next += count;
      }
      EXPECT_EQ(value_count(layout), next);
      EXPECT_EQ(initial_values(spec, stage).size(), next);
    }
  }
}

TEST(InitialValues, DoNotDependOnTheSplitIntoStages) {
  const auto two = tensors_of(spec_of(BoundaryKind::kNone, 2));
  const auto four = tensors_of(spec_of(BoundaryKind::kNone, 4));
  EXPECT_EQ(two, four);
  EXPECT_EQ(two.size(), 3u + 4 * 9);
}

TEST(InitialValues, DoNotDependOnThreadsButOnTheSeed) {
  RunSpec spec = spec_of(BoundaryKind::kAnchored, 2);
  spec.model.vocab = 60000;  // 3.8 million values in the first table: several threads have work
  const std::vector<float> one = initial_values(spec, 0, 1);
  EXPECT_EQ(one, initial_values(spec, 0, 5));
  spec.training.seed = 4;
  const std::vector<float> other = initial_values(spec, 0, 5);
  EXPECT_FALSE(std::equal(one.begin(), one.begin() + 8, other.begin()));
}

TEST(InitialValues, Deviations) {
  const auto tensors = tensors_of(spec_of(BoundaryKind::kAnchored, 2));
  EXPECT_NEAR(deviation_of(tensors.at("model.embed_tokens.weight")), 0.02, 0.0005);
  EXPECT_NEAR(deviation_of(tensors.at("model.layers.3.mlp.gate_proj.weight")), 0.02, 0.001);
  EXPECT_NEAR(deviation_of(tensors.at("model.layers.0.mlp.down_proj.weight")),
              0.02 / std::sqrt(8.0), 0.0004);
  EXPECT_NEAR(deviation_of(tensors.at("model.layers.0.self_attn.o_proj.weight")),
              0.02 / std::sqrt(8.0), 0.0004);
  EXPECT_NEAR(deviation_of(tensors.at("boundary.0.encoder")), 1, 0.1);
  EXPECT_NEAR(deviation_of(tensors.at("boundary.0.decoder")), 1, 0.1);
  EXPECT_NEAR(deviation_of(tensors.at("boundary.0.anchor")), 0.02, 0.0005);
  EXPECT_THAT(tensors.at("boundary.0.gain"), testing::Each(0.02f));
  EXPECT_THAT(tensors.at("model.layers.1.input_layernorm.weight"), testing::Each(1.0f));

  const auto residual = tensors_of(spec_of(BoundaryKind::kResidual, 2));
  EXPECT_NEAR(deviation_of(residual.at("boundary.0.encoder_in")), 0.02, 0.001);
  EXPECT_NEAR(deviation_of(residual.at("boundary.0.encoder_out")), 0.01, 0.0011);

  // A factorised anchor: its product has the deviation of a full table.
  const auto factorised = tensors_of(spec_of(BoundaryKind::kAnchored, 2, 16));
  const std::vector<float>& table = factorised.at("boundary.0.anchor");
  const std::vector<float>& basis = factorised.at("boundary.0.anchor_basis");
  std::vector<float> product;
  for (size_t row = 0; row < 300; ++row) {
    for (size_t column = 0; column < 64; ++column) {
      float sum = 0;
      for (size_t i = 0; i < 16; ++i) sum += table[row * 16 + i] * basis[i * 64 + column];
      product.push_back(sum);
    }
  }
  EXPECT_NEAR(deviation_of(product), 0.02, 0.001);
}

// The normal numbers against the distribution function: Kolmogorov and Smirnov's distance, and
// neighbours' correlation.
TEST(InitialValues, AreIndependentAndNormal) {
  RunSpec spec = spec_of(BoundaryKind::kNone, 2);
  spec.model.vocab = 20000;
  const std::vector<float> all = initial_values(spec, 0);
  std::vector<double> values(all.begin(), all.begin() + 20000 * 64);
  for (double& value : values) value /= spec.model.init_std;
  const double count = static_cast<double>(values.size());
  double correlation = 0, fourth = 0;
  for (size_t i = 1; i < values.size(); ++i) correlation += values[i] * values[i - 1];
  for (double value : values) fourth += value * value * value * value;
  EXPECT_LT(std::abs(correlation / count), 4 / std::sqrt(count));
  EXPECT_NEAR(fourth / count, 3, 4 * std::sqrt(96 / count));
  std::sort(values.begin(), values.end());
  double distance = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = 0.5 * std::erfc(-values[i] / std::sqrt(2.0));
    distance = std::max(distance, std::abs(expected - (static_cast<double>(i) + 0.5) / count));
  }
  EXPECT_LT(distance * std::sqrt(count), 1.95);  // exceeded by chance once in 1000 seeds
  EXPECT_GT(values.back(), 4.5);
  EXPECT_LT(values.back(), 6.7);
}

// Pinned: replicas on other machines, compilers and versions must start from these bytes.
TEST(InitialValues, AreTheSameBytesEverywhere) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, 3);
  Hasher hasher;
  for (StageIndex stage = 0; stage < 3; ++stage) {
    const std::vector<float> values = initial_values(spec, stage);
    hasher.update(values.data(), values.size() * sizeof(float));
  }
  EXPECT_EQ(hasher.finish().hex(),
            "4da3e0f15f1796c84b7fc15eb8a6dabd8c330fa61c452a2c9be9342e82755eb0");
}

}  // namespace
}  // namespace tessera::model
