#include "data/manifest_json.h"

#include <nlohmann/json.hpp>
#include <set>

#include "tessera/base/files.h"

namespace tessera::data {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "tessera-dataset";
constexpr uint64_t kVersion = 1;
constexpr size_t kMaxManifestBytes = size_t{64} << 20;
constexpr uint64_t kMaxVocab = uint64_t{1} << 24;
constexpr uint64_t kMaxShardBytes = uint64_t{1} << 48;

json shards_to_json(const std::vector<core::TokenShard>& shards) {
  json list = json::array();
  for (const core::TokenShard& shard : shards) {
    list.push_back({{"file", shard.file},
                    {"tokens", shard.tokens},
                    {"bytes", shard.bytes},
                    {"blake2b", shard.digest.hex()}});
  }
  return list;
}

// Reads the fields of one object; the first problem is kept and names the place.
class FieldReader {
 public:
  FieldReader(const json& object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object_.is_object()) refuse("is not an object");
  }
  std::string text(const char* name) {
    const json* value = find(name);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
    refuse(fmt::format("needs a string \"{}\"", name));
    return {};
  }
  uint64_t number(const char* name, uint64_t least, uint64_t most) {
    const json* value = find(name);
    if (value != nullptr && value->is_number_unsigned()) {
      const auto number = value->get<uint64_t>();
      if (number >= least && number <= most) return number;
    }
    refuse(fmt::format("needs a whole number \"{}\" from {} to {}", name, least, most));
    return least;
  }
  Digest digest(const char* name) {
    Digest digest;
    const std::optional<std::string> bytes = from_hex(text(name));
    if (!bytes || !Digest::from(*bytes, &digest)) {
      refuse(fmt::format("needs 64 hexadecimal digits in \"{}\"", name));
    }
    return digest;
  }
  const json* find(const char* name) const {
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }
  void refuse(const std::string& problem) {
    if (problem_.empty()) problem_ = place_ + " " + problem;
  }
  Status status(const std::string& path) const {
    if (problem_.empty()) return ok_status();
    return data_loss("{}: {}; {}", path, problem_, kRebuildHint);
  }

 private:
  const json& object_;
  const std::string place_;
  std::string problem_;
};

// Nothing that leads out of the folder, hides in it, or is no name at all.
bool is_plain_file_name(const std::string& name) {
  if (name.empty() || name.size() > 255 || name.front() == '.') return false;
  for (const char byte : name) {
    if (byte == '/' || byte == '\\' || static_cast<unsigned char>(byte) < 0x20) return false;
  }
  return true;
}

StatusOr<std::vector<core::TokenShard>> shards_from_json(const json& manifest, const char* split,
                                                         const std::string& path,
                                                         std::set<std::string>* names) {
  const auto list = manifest.find(split);
  if (list == manifest.end() || !list->is_array()) {
    return data_loss("{}: needs a list \"{}\"; {}", path, split, kRebuildHint);
  }
  std::vector<core::TokenShard> shards;
  for (const json& item : *list) {
    FieldReader fields(item, fmt::format("{}[{}]", split, shards.size()));
    core::TokenShard shard;
    shard.file = fields.text("file");
    shard.bytes = fields.number("bytes", 0, kMaxShardBytes);
    shard.tokens = fields.number("tokens", 1, shard.bytes / 2);
    shard.digest = fields.digest("blake2b");
    if (!is_plain_file_name(shard.file)) {
      fields.refuse("has a \"file\" that is not a plain file name of this folder");
    } else if (!names->insert(shard.file).second) {
      fields.refuse(fmt::format("names the file {} a second time", shard.file));
    }
    TESSERA_RETURN_IF_ERROR(fields.status(path));
    shards.push_back(std::move(shard));
  }
  return shards;
}

}  // namespace

std::string manifest_to_json(const StoredManifest& stored) {
  const DatasetManifest& manifest = stored.manifest;
  nlohmann::ordered_json out;
  out["format"] = kFormat;
  out["version"] = kVersion;
  out["tokenizer"] = manifest.tokenizer;
  if (!stored.tokenizer_digest.is_zero()) {
    out["tokenizer_blake2b"] = stored.tokenizer_digest.hex();
  }
  out["vocab"] = manifest.vocab;
  out["token_bytes"] = manifest.token_bytes;
  out["train"] = shards_to_json(manifest.train);
  out["validation"] = shards_to_json(manifest.validation);
  out["fingerprint"] = stored.fingerprint.hex();
  return out.dump(2) + "\n";
}

StatusOr<StoredManifest> manifest_from_json(std::string_view text, const std::string& path) {
  const json manifest = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (manifest.is_discarded()) return data_loss("{}: not valid JSON; {}", path, kRebuildHint);
  FieldReader fields(manifest, "the manifest");
  const std::string format = fields.text("format");
  TESSERA_RETURN_IF_ERROR(fields.status(path));
  if (format != kFormat) {
    return data_loss("{}: the format is \"{:.64}\", expected \"{}\": this is not a dataset folder",
                     path, format, kFormat);
  }
  const uint64_t version = fields.number("version", 0, UINT32_MAX);
  TESSERA_RETURN_IF_ERROR(fields.status(path));
  if (version != kVersion) {
    return invalid_argument("{}: dataset version {}, this program reads version {}; {}", path,
                            version, kVersion, kRebuildHint);
  }
  StoredManifest stored;
  DatasetManifest& out = stored.manifest;
  out.tokenizer = fields.text("tokenizer");
  if (out.tokenizer != "bytes" && out.tokenizer != "sentencepiece" && out.tokenizer != "external") {
    fields.refuse("needs \"bytes\", \"sentencepiece\" or \"external\" in \"tokenizer\"");
  }
  if (out.tokenizer == "sentencepiece")
    stored.tokenizer_digest = fields.digest("tokenizer_blake2b");
  out.vocab = static_cast<uint32_t>(fields.number("vocab", 1, kMaxVocab));
  out.token_bytes = static_cast<uint32_t>(fields.number("token_bytes", 2, 4));
  if (out.token_bytes == 3 || (out.token_bytes == 2 && out.vocab > 65536)) {
    fields.refuse(fmt::format("has {} bytes a token, which does not go with a vocabulary of {}",
                              out.token_bytes, out.vocab));
  }
  stored.fingerprint = fields.digest("fingerprint");
  TESSERA_RETURN_IF_ERROR(fields.status(path));
  std::set<std::string> names;
  TESSERA_ASSIGN_OR_RETURN(out.train, shards_from_json(manifest, "train", path, &names));
  TESSERA_ASSIGN_OR_RETURN(out.validation, shards_from_json(manifest, "validation", path, &names));
  if (out.train.empty()) return data_loss("{}: no training shards; {}", path, kRebuildHint);
  return stored;
}

StatusOr<StoredManifest> read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestFile;
  const StatusOr<std::string> text = read_file(path, kMaxManifestBytes);
  if (absl::IsNotFound(text.status())) {
    return not_found(
        "{}: no {} in this folder: it is not a dataset; make one with `tesseractl data build`",
        folder, kManifestFile);
  }
  if (!text.ok()) return text.status();
  TESSERA_ASSIGN_OR_RETURN(StoredManifest stored, manifest_from_json(*text, path));
  stored.manifest.folder = folder;
  return stored;
}

}  // namespace tessera::data
