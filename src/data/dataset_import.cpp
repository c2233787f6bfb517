#include <unistd.h>

#include <filesystem>

#include "data/build_folder.h"
#include "data/dataset_check.h"
#include "data/sequential_file.h"
#include "tessera/base/archive.h"
#include "tessera/base/crypto.h"
#include "tessera/data/dataset.h"
#include "tessera/data/token_shard.h"

namespace tessera::data {
namespace {

constexpr uint32_t kTokenBytes = 2;

// The largest id and the digest, in one reading.
struct Scan {
  Digest digest;
  uint32_t largest_id = 0;
};

StatusOr<Scan> scan_ids(const std::string& path, const ShardInfo& info) {
  Scan scan;
  const auto visit = [&](uint64_t offset, std::string_view piece) {
    // Pieces and the header have an even number of bytes, so no id is cut in two.
    const size_t skip = offset < info.data_offset ? info.data_offset - offset : 0;
    for (size_t i = skip; i + kTokenBytes <= piece.size(); i += kTokenBytes) {
      const uint32_t id = static_cast<unsigned char>(piece[i]) |
                          static_cast<uint32_t>(static_cast<unsigned char>(piece[i + 1])) << 8;
      scan.largest_id = std::max(scan.largest_id, id);
    }
    return ok_status();
  };
  TESSERA_ASSIGN_OR_RETURN(scan.digest, digest_file(path, visit));
  return scan;
}

StatusOr<std::vector<core::TokenShard>> link_shards(const std::vector<std::string>& paths,
                                                    const char* split, uint32_t vocab,
                                                    const std::string& folder) {
  std::vector<core::TokenShard> shards;
  for (const std::string& path : paths) {
    std::error_code code;
    const std::string source = std::filesystem::canonical(path, code).string();
    if (code) return not_found("{}: can't resolve this input: {}", path, code.message());
    TESSERA_ASSIGN_OR_RETURN(const auto reader, TokenShardReader::open(source));
    const ShardInfo& info = reader->info();
    if (info.format == ShardInfo::Format::kTessera) {
      return invalid_argument("{}: a Tessera token shard; use the dataset folder it belongs to",
                              path);
    }
    if (!source.ends_with(".bin")) {
      return invalid_argument("{}: an imported shard must be named .bin", path);
    }
    TESSERA_ASSIGN_OR_RETURN(const Scan scan, scan_ids(source, info));
    if (scan.largest_id >= vocab) {
      return invalid_argument(
          "{}: holds the id {}, outside the vocabulary of {} that was given; give the "
          "vocabulary of the tokenizer that made it (GPT-2: 50257)",
          path, scan.largest_id, vocab);
    }
    core::TokenShard shard;
    shard.file = fmt::format("{}-{:05}.bin", split, shards.size());
    shard.tokens = info.tokens;
    shard.bytes = info.data_offset + info.tokens * info.token_bytes;
    shard.digest = scan.digest;
    if (::symlink(source.c_str(), (folder + "/" + shard.file).c_str()) != 0) {
      return file_error(folder + "/" + shard.file, "link");
    }
    shards.push_back(std::move(shard));
  }
  return shards;
}

Status refuse_common_shards(const DatasetManifest& manifest) {
  for (const core::TokenShard& train : manifest.train) {
    for (const core::TokenShard& validation : manifest.validation) {
      if (train.digest == validation.digest) {
        return invalid_argument(
            "the same shard is given for training ({}) and for validation ({}); "
            "validating on training data measures nothing",
            train.file, validation.file);
      }
    }
  }
  return ok_status();
}

Digest fingerprint_of(const DatasetManifest& manifest) {
  Encoder encoder;
  encoder.write(std::string("tessera import 1"));
  encoder.write(manifest.vocab);
  encoder.write(manifest.train);
  encoder.write(manifest.validation);
  return digest_of(encoder.take());
}

}  // namespace

StatusOr<DatasetManifest> import_bin_shards(const std::vector<std::string>& train,
                                            const std::vector<std::string>& validation,
                                            uint32_t vocab, const std::string& out) {
  if (train.empty()) return invalid_argument("no training shards are given");
  if (vocab == 0 || vocab > 65536) {
    return invalid_argument(
        "a vocabulary of {} does not go with 16-bit ids; give 1 to 65536 (GPT-2: "
        "50257)",
        vocab);
  }
  std::vector<std::string> inputs = train;
  inputs.insert(inputs.end(), validation.begin(), validation.end());
  TESSERA_ASSIGN_OR_RETURN(const std::string target, resolve_output(out, inputs));
  TESSERA_RETURN_IF_ERROR(check_replaceable(target, /*force=*/false));
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<BuildFolder> folder, BuildFolder::create(target));
  StoredManifest stored;
  DatasetManifest& manifest = stored.manifest;
  manifest.tokenizer = "external";
  manifest.vocab = vocab;
  manifest.token_bytes = kTokenBytes;
  TESSERA_ASSIGN_OR_RETURN(manifest.train, link_shards(train, "train", vocab, folder->path()));
  TESSERA_ASSIGN_OR_RETURN(manifest.validation,
                           link_shards(validation, "validation", vocab, folder->path()));
  TESSERA_RETURN_IF_ERROR(refuse_common_shards(manifest));
  stored.fingerprint = fingerprint_of(manifest);
  TESSERA_RETURN_IF_ERROR(folder->publish(stored));
  manifest.folder = target;
  return std::move(manifest);
}

}  // namespace tessera::data
