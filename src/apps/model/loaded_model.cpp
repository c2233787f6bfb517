#include "apps/model/loaded_model.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "tessera/store/checkpoint.h"

namespace tessera::apps {

StatusOr<LoadedModel> load_model(const ModelOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(ports::Checkpoint checkpoint,
                           store::read_checkpoint_weights(options.checkpoint));
  std::vector<std::vector<float>> stages;
  for (ports::CheckpointStage& stage : checkpoint.stages)
    stages.push_back(std::move(stage.weights));
  LoadedModel loaded{
      .spec = std::move(checkpoint.spec), .data = std::move(checkpoint.data), .model = nullptr};
  TESSERA_ASSIGN_OR_RETURN(loaded.model, model::WholeModel::create(
                                             loaded.spec, stages, options.device, options.threads));
  return loaded;
}

StatusOr<std::unique_ptr<data::Tokenizer>> load_model_tokenizer(const LoadedModel& loaded,
                                                                const ModelOptions& options) {
  const std::string& kind = loaded.data.tokenizer;
  std::unique_ptr<data::Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) {
    std::error_code ignored;
    TESSERA_ASSIGN_OR_RETURN(tokenizer, std::filesystem::is_directory(options.tokenizer, ignored)
                                            ? data::load_tokenizer(options.tokenizer)
                                            : data::load_sentencepiece(options.tokenizer));
  } else if (kind == "sentencepiece") {
    return failed_precondition(
        "this model was trained on SentencePiece tokens: give --tokenizer with its tokenizer.model "
        "or the dataset's folder");
  } else if (kind == "external") {
    return failed_precondition(
        "this model was trained on imported token ids, and their tokenizer is not known here: give "
        "--tokenizer with a SentencePiece model of the same ids, or evaluate with --data");
  } else {
    tokenizer = data::make_byte_tokenizer();
  }
  if (kind != "external" && !kind.empty() && tokenizer->kind() != kind) {
    return failed_precondition("{}: a {} tokenizer, but this model was trained on {} tokens",
                               options.tokenizer, tokenizer->kind(), kind);
  }
  if (tokenizer->vocab() > loaded.spec.model.vocab) {
    return failed_precondition(
        "the tokenizer has {} ids, but model.vocab is {}: it is not the one of this model",
        tokenizer->vocab(), loaded.spec.model.vocab);
  }
  return tokenizer;
}

}  // namespace tessera::apps
