#include "tessera/store/hf_export.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "tessera/base/files.h"
#include "tessera/core/stage_layout.h"
#include "tessera/store/safetensors.h"

namespace tessera::store {
namespace {

using nlohmann::ordered_json;

constexpr char kEmbedding[] = "model.embed_tokens.weight";

Status check_exportable(const ports::Checkpoint& checkpoint) {
  const core::RunSpec& spec = checkpoint.spec;
  if (spec.boundary.kind != core::BoundaryKind::kNone && spec.pipeline.stages > 1) {
    return failed_precondition(
        "this model has {} boundaries of kind {} between its stages; their parameters are part of "
        "the model, and transformers has no module for them. Train with boundary.kind: none to get "
        "a plain Llama, or use 'tesseractl eval' and 'tesseractl generate' on the checkpoint "
        "itself",
        spec.pipeline.stages - 1, core::name_of(spec.boundary.kind));
  }
  for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
    const uint64_t count = core::stage_value_count(spec, stage);
    if (stage < checkpoint.stages.size() && checkpoint.stages[stage].weights.size() == count) {
      continue;
    }
    return invalid_argument("the checkpoint lacks the {} weights of stage {}", count, stage);
  }
  return ok_status();
}

Status prepare_folder(const std::string& folder, bool force) {
  std::error_code code;
  if (std::filesystem::exists(folder, code) && !std::filesystem::is_directory(folder, code)) {
    return error(absl::StatusCode::kAlreadyExists, "{}: is a file; give a folder", folder);
  }
  TESSERA_RETURN_IF_ERROR(make_directories(folder));
  const bool empty = std::filesystem::is_empty(folder, code);
  if (code) return internal_error("{}: can't list this folder: {}", folder, code.message());
  if (empty || force) return ok_status();
  return error(absl::StatusCode::kAlreadyExists,
               "{}: not empty; give a new folder, or --force to replace the model in it", folder);
}

ordered_json config_of(const core::RunSpec& spec, const std::optional<uint32_t>& end_of_document) {
  const core::ModelSpec& model = spec.model;
  ordered_json out;
  out["architectures"] = {"LlamaForCausalLM"};
  out["model_type"] = "llama";
  out["vocab_size"] = model.vocab;
  out["hidden_size"] = model.width;
  out["intermediate_size"] = model.ffn_width;
  out["num_hidden_layers"] = model.layers;
  out["num_attention_heads"] = model.heads;
  out["num_key_value_heads"] = model.kv_heads;
  out["head_dim"] = model.width / model.heads;
  out["max_position_embeddings"] = model.context;
  out["hidden_act"] = "silu";
  out["rms_norm_eps"] = model.norm_epsilon;
  out["rope_theta"] = model.rope_theta;  // up to transformers 4
  out["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", model.rope_theta}};
  out["attention_bias"] = false;
  out["mlp_bias"] = false;
  out["attention_dropout"] = 0.0;
  out["tie_word_embeddings"] = false;
  out["initializer_range"] = model.init_std;
  out["use_cache"] = true;
  out["torch_dtype"] = "float32";  // up to transformers 4
  out["dtype"] = "float32";
  // Said even where there is none: the defaults of a LlamaConfig are ids of another tokenizer.
  out["bos_token_id"] = nullptr;
  out["eos_token_id"] = end_of_document ? ordered_json(*end_of_document) : ordered_json();
  out["pad_token_id"] = nullptr;
  return out;
}

ordered_json generation_config_of(const std::optional<uint32_t>& end_of_document) {
  ordered_json out;
  out["_from_model_config"] = true;
  if (end_of_document) out["eos_token_id"] = *end_of_document;
  return out;
}

// rows [V, d] with every row x replaced by x / sqrt(mean(x^2) + epsilon): what the model computes
// of the row it looks up.
std::vector<float> normalised_rows(const float* table, size_t rows, size_t width, double epsilon) {
  std::vector<float> out(rows * width);
  for (size_t row = 0; row < rows; ++row) {
    const float* x = table + row * width;
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (size_t i = 0; i < width; ++i) out[row * width + i] = static_cast<float>(x[i] * scale);
  }
  return out;
}

std::string_view bytes_of(const float* values, uint64_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(float)};
}

Status write_model(const std::string& path, const ports::Checkpoint& checkpoint) {
  const core::RunSpec& spec = checkpoint.spec;
  std::vector<SafeTensor> tensors;
  std::vector<float> table;
  for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
    for (const core::TensorLayout& tensor : core::stage_layout(spec, stage)) {
      const float* values = checkpoint.stages[stage].weights.data() + tensor.offset;
      if (tensor.name == kEmbedding && spec.model.embedding_norm) {
        table =
            normalised_rows(values, spec.model.vocab, spec.model.width, spec.model.norm_epsilon);
        values = table.data();
      }
      tensors.push_back({tensor.name, "F32", tensor.shape, bytes_of(values, tensor.count)});
    }
  }
  return write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace

Status export_hugging_face(const ports::Checkpoint& checkpoint, const std::string& out_folder,
                           bool force, std::optional<uint32_t> end_of_document) {
  core::RunSpec spec = checkpoint.spec;
  TESSERA_RETURN_IF_ERROR(annotate(core::validate(&spec), "the checkpoint's run specification"));
  TESSERA_RETURN_IF_ERROR(check_exportable(checkpoint));
  if (end_of_document && *end_of_document >= spec.model.vocab) {
    return invalid_argument("end of document {}: model.vocab is {}", *end_of_document,
                            spec.model.vocab);
  }
  TESSERA_RETURN_IF_ERROR(prepare_folder(out_folder, force));
  if (!end_of_document && checkpoint.data.tokenizer == "bytes") end_of_document = 0;
  TESSERA_RETURN_IF_ERROR(write_model(out_folder + "/model.safetensors", checkpoint));
  TESSERA_RETURN_IF_ERROR(write_file_atomic(out_folder + "/generation_config.json",
                                            generation_config_of(end_of_document).dump(2) + "\n"));
  // Last: without it nothing takes the folder for a model.
  return write_file_atomic(out_folder + "/config.json",
                           config_of(spec, end_of_document).dump(2) + "\n");
}

}  // namespace tessera::store
