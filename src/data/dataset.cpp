#include "tessera/data/dataset.h"

#include <algorithm>

#include "data/dataset_check.h"
#include "data/manifest_json.h"
#include "data/sequential_file.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/data/token_shard.h"

namespace tessera::data {
namespace {

Status check_shard(const DatasetManifest& manifest, const core::TokenShard& shard,
                   bool verify_hashes) {
  const std::string path = manifest.folder + "/" + shard.file;
  const auto reader = TokenShardReader::open(path);
  if (absl::IsNotFound(reader.status())) {
    return data_loss("{}: missing, the manifest lists it with {} bytes; {}", path, shard.bytes,
                     kRebuildHint);
  }
  if (!reader.ok()) return reader.status();
  const ShardInfo& info = (*reader)->info();
  const uint64_t bytes = info.data_offset + info.tokens * info.token_bytes;
  if (bytes != shard.bytes) {
    return data_loss("{}: {} bytes, the manifest has {}; {}", path, bytes, shard.bytes,
                     kRebuildHint);
  }
  if (info.tokens != shard.tokens || info.token_bytes != manifest.token_bytes) {
    return data_loss("{}: {} tokens of {} bytes, the manifest has {} of {}; {}", path, info.tokens,
                     info.token_bytes, shard.tokens, manifest.token_bytes, kRebuildHint);
  }
  if (info.vocab != 0 && info.vocab != manifest.vocab) {
    return data_loss("{}: a vocabulary of {}, the manifest has {}; {}", path, info.vocab,
                     manifest.vocab, kRebuildHint);
  }
  if (!verify_hashes) return ok_status();
  TESSERA_ASSIGN_OR_RETURN(const Digest digest, digest_file(path));
  if (digest != shard.digest) {
    return data_loss("{}: BLAKE2b is {}, the manifest has {}: the file is corrupt; {}", path,
                     digest.hex(), shard.digest.hex(), kRebuildHint);
  }
  return ok_status();
}

}  // namespace

core::DataPlan DatasetManifest::plan() const {
  return {.tokenizer = tokenizer, .vocab = vocab, .token_bytes = token_bytes, .train = train};
}

Status check_dataset(const StoredManifest& stored, bool verify_hashes) {
  const DatasetManifest& manifest = stored.manifest;
  for (const auto* split : {&manifest.train, &manifest.validation}) {
    for (const core::TokenShard& shard : *split) {
      TESSERA_RETURN_IF_ERROR(check_shard(manifest, shard, verify_hashes));
    }
  }
  if (!verify_hashes || manifest.tokenizer != "sentencepiece") return ok_status();
  return load_tokenizer(manifest.folder).status();
}

StatusOr<DatasetManifest> load_dataset(const std::string& folder, bool verify_hashes) {
  TESSERA_ASSIGN_OR_RETURN(StoredManifest stored, read_manifest(folder));
  TESSERA_RETURN_IF_ERROR(check_dataset(stored, verify_hashes));
  return std::move(stored.manifest);
}

}  // namespace tessera::data
