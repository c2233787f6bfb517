#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/temporary_folder.h"
#include "tessera/base/files.h"
#include "tessera/model/stage_layout.h"
#include "tessera/store/hf_export.h"
#include "tessera/store/safetensors.h"

namespace tessera::store {
namespace {

using absl::StatusCode;
using test::TemporaryFolder;
using testing::HasSubstr;

ports::Checkpoint make_checkpoint(core::BoundaryKind kind, uint32_t stages, bool embedding_norm) {
  ports::Checkpoint checkpoint;
  core::RunSpec& spec = checkpoint.spec;
  spec.model = {.layers = 2,
                .width = 16,
                .heads = 4,
                .kv_heads = 2,
                .ffn_width = 24,
                .vocab = 40,
                .context = 12,
                .rope_theta = 5000,
                .norm_epsilon = 1e-3,
                .init_std = 0.3,
                .embedding_norm = embedding_norm};
  spec.pipeline.stages = stages;
  spec.boundary = {.kind = kind, .codec = Codec::kBf16, .compression = 4};
  const Status valid = core::validate(&spec);
  EXPECT_TRUE(valid.ok()) << valid;
  checkpoint.data.tokenizer = "bytes";
  for (StageIndex stage = 0; stage < stages; ++stage) {
    checkpoint.stages.emplace_back().weights = model::initial_values(spec, stage, 1);
  }
  return checkpoint;
}

nlohmann::json json_in(const std::string& path) {
  const StatusOr<std::string> text = read_file(path);
  EXPECT_TRUE(text.ok()) << text.status();
  return nlohmann::json::parse(text.value_or("null"));
}

std::vector<float> tensor_of(const SafetensorsFile& file, const std::string& name) {
  const SafeTensor* tensor = file.find(name);
  if (tensor == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  EXPECT_EQ(tensor->dtype, "F32");
  std::vector<float> values(tensor->data.size() / sizeof(float));
  std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  return values;
}

TEST(HfExportTest, SaysWhatTheModelIs) {
  const TemporaryFolder folder;
  const ports::Checkpoint checkpoint = make_checkpoint(core::BoundaryKind::kNone, 2, true);
  const Status status = export_hugging_face(checkpoint, folder / "hf", false);
  ASSERT_TRUE(status.ok()) << status;
  const nlohmann::json config = json_in(folder / "hf/config.json");
  const nlohmann::json expected = {{"architectures", {"LlamaForCausalLM"}},
                                   {"model_type", "llama"},
                                   {"vocab_size", 40},
                                   {"hidden_size", 16},
                                   {"intermediate_size", 24},
                                   {"num_hidden_layers", 2},
                                   {"num_attention_heads", 4},
                                   {"num_key_value_heads", 2},
                                   {"head_dim", 4},
                                   {"max_position_embeddings", 12},
                                   {"rms_norm_eps", 1e-3},
                                   {"rope_theta", 5000.0},
                                   {"tie_word_embeddings", false},
                                   {"attention_bias", false},
                                   {"mlp_bias", false},
                                   {"torch_dtype", "float32"},
                                   {"hidden_act", "silu"},
                                   {"eos_token_id", 0}};
  for (const auto& [name, value] : expected.items()) EXPECT_EQ(config[name], value) << name;
  EXPECT_EQ(config["rope_parameters"]["rope_theta"], 5000.0);
  EXPECT_TRUE(config["bos_token_id"].is_null());
  EXPECT_EQ(json_in(folder / "hf/generation_config.json")["eos_token_id"], 0);
}

TEST(HfExportTest, FoldsTheNormOfTheEmbeddingAndNothingElse) {
  const TemporaryFolder folder;
  for (const bool norm : {false, true}) {
    const ports::Checkpoint checkpoint = make_checkpoint(core::BoundaryKind::kNone, 2, norm);
    ASSERT_TRUE(export_hugging_face(checkpoint, folder / "hf", true).ok());
    const auto file = read_safetensors(folder / "hf/model.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->metadata.at("format"), "pt");
    size_t tensors = 0;
    for (StageIndex stage = 0; stage < 2; ++stage) {
      for (const core::TensorLayout& layout : core::stage_layout(checkpoint.spec, stage)) {
        ++tensors;
        const std::vector<float> exported = tensor_of(**file, layout.name);
        const float* original = checkpoint.stages[stage].weights.data() + layout.offset;
        ASSERT_EQ(exported.size(), layout.count);
        if (norm && layout.name == "model.embed_tokens.weight") {
          for (size_t row = 0; row < 40; ++row) {
            double squares = 0;
            for (size_t i = 0; i < 16; ++i) squares += std::pow(original[row * 16 + i], 2);
            for (size_t i = row * 16; i < (row + 1) * 16; ++i) {
              EXPECT_NEAR(exported[i], original[i] / std::sqrt(squares / 16 + 1e-3), 1e-6);
            }
          }
        } else {
          EXPECT_EQ(exported, std::vector<float>(original, original + layout.count)) << layout.name;
        }
      }
    }
    EXPECT_EQ((*file)->tensors.size(), tensors);
  }
}

TEST(HfExportTest, RefusesWhatTransformersLacks) {
  const TemporaryFolder folder;
  for (const auto kind :
       {core::BoundaryKind::kIota, core::BoundaryKind::kResidual, core::BoundaryKind::kAnchored}) {
    const Status status = export_hugging_face(make_checkpoint(kind, 2, true), folder / "hf", false);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(message_of(status), HasSubstr(core::name_of(kind)));
    EXPECT_THAT(message_of(status), HasSubstr("boundary.kind: none"));
    EXPECT_THAT(message_of(status), HasSubstr("tesseractl generate"));
    EXPECT_FALSE(file_exists(folder / "hf"));
  }
  // One stage has no boundary, whatever the kind.
  EXPECT_TRUE(export_hugging_face(make_checkpoint(core::BoundaryKind::kAnchored, 1, true),
                                  folder / "hf", false)
                  .ok());
}

TEST(HfExportTest, LeavesOtherFilesAlone) {
  const TemporaryFolder folder;
  const ports::Checkpoint checkpoint = make_checkpoint(core::BoundaryKind::kNone, 1, true);
  ASSERT_TRUE(write_file_atomic(folder / "hf/notes.txt", "mine").ok());
  const Status refused = export_hugging_face(checkpoint, folder / "hf", false);
  EXPECT_EQ(refused.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(message_of(refused), HasSubstr("--force"));
  EXPECT_FALSE(file_exists(folder / "hf/config.json"));
  EXPECT_TRUE(export_hugging_face(checkpoint, folder / "hf", true).ok());
  EXPECT_EQ(read_file(folder / "hf/notes.txt").value(), "mine");
  EXPECT_EQ(export_hugging_face(checkpoint, folder / "hf/notes.txt", true).code(),
            StatusCode::kAlreadyExists);
}

TEST(HfExportTest, ChecksWhatItIsGiven) {
  const TemporaryFolder folder;
  ports::Checkpoint checkpoint = make_checkpoint(core::BoundaryKind::kNone, 2, true);
  EXPECT_EQ(export_hugging_face(checkpoint, folder / "hf", false, 40).code(),
            StatusCode::kInvalidArgument);
  checkpoint.data.tokenizer = "sentencepiece";
  ASSERT_TRUE(export_hugging_face(checkpoint, folder / "hf", false).ok());
  EXPECT_TRUE(json_in(folder / "hf/config.json")["eos_token_id"].is_null());
  ASSERT_TRUE(export_hugging_face(checkpoint, folder / "hf", true, 2).ok());
  EXPECT_EQ(json_in(folder / "hf/config.json")["eos_token_id"], 2);
  checkpoint.stages[1].weights.pop_back();
  EXPECT_EQ(export_hugging_face(checkpoint, folder / "other", false).code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tessera::store
