#include "training_data.h"

#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/node/objects.h"

namespace tessera::apps {

StatusOr<data::DatasetManifest> open_dataset(const config::RunConfig& config, const std::string& default_folder) {
  const std::string folder = config.data.path.empty() ? default_folder : config.data.path;
  if (!config.data.text.empty()) {
    data::BuildOptions options;
    options.inputs = config.data.text;
    options.out = folder;
    options.sentencepiece_model = config.data.sentencepiece_model;
    options.validation_share = config.data.validation_share;
    options.jsonl_field = config.data.jsonl_field;
    TESSERA_RETURN_IF_ERROR(annotate(data::build_dataset(options).status(), "building the dataset"));
  } else if (!file_exists(folder + "/manifest.json")) {
    return not_found("no training data: {} holds no dataset; set data.text to text files, or data.path to a folder made "
                     "by 'tesseractl data build'", folder);
  }
  TESSERA_ASSIGN_OR_RETURN(data::DatasetManifest dataset, data::load_dataset(folder, true));
  const core::ModelSpec& model = config.spec.model;
  if (dataset.vocab > model.vocab) {
    return invalid_argument("{} has a vocabulary of {}, model.vocab is {}; set model.vocab to at least {}", folder,
                            dataset.vocab, model.vocab, dataset.vocab);
  }
  if (core::window_count(dataset.train, model.context) == 0) {
    return invalid_argument("{} has no training sequence of model.context + 1 = {} tokens; give it more text", folder,
                            model.context + 1);
  }
  return dataset;
}

StatusOr<core::DataPlan> publish_dataset(const data::DatasetManifest& dataset, ports::BlobLink& blobs) {
  core::DataPlan plan = dataset.plan();
  for (core::TokenShard& shard : plan.train) {
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(dataset.folder + "/" + shard.file));
    TESSERA_ASSIGN_OR_RETURN(shard.object, node::put_object(blobs, bytes));
  }
  return plan;
}

StatusOr<data::TokenShardReader*> ShardCache::open(const core::TokenShard& shard) {
  const auto found = readers_.find(shard.digest);
  if (found != readers_.end()) return found->second.get();
  const std::string path = folder_ + "/" + shard.digest.hex() + ".bin";
  if (!file_exists(path)) {
    spdlog::info("fetching training shard {} ({} tokens)", shard.file, shard.tokens);
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, node::get_object(blobs_, shard.object, shard.bytes));
    if (digest_of(bytes) != shard.digest) return data_loss("shard {} is not what the data plan names", shard.file);
    TESSERA_RETURN_IF_ERROR(write_file_atomic(path, bytes));
  }
  TESSERA_ASSIGN_OR_RETURN(auto reader, data::TokenShardReader::open(path));
  return readers_.emplace(shard.digest, std::move(reader)).first->second.get();
}

StatusOr<std::vector<uint32_t>> ShardCache::read(const core::TokenShard& shard, uint64_t first, uint64_t count) {
  TESSERA_ASSIGN_OR_RETURN(const data::TokenShardReader* reader, open(shard));
  return reader->read(first, count);
}

}  // namespace tessera::apps
