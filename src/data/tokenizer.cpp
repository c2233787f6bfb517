#include "tessera/data/tokenizer.h"

#include "data/manifest_json.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"

namespace tessera::data {
namespace {

constexpr uint32_t kByteVocab = 256;

class ByteTokenizer : public Tokenizer {
 public:
  std::string kind() const override { return "bytes"; }
  uint32_t vocab() const override { return kByteVocab; }
  uint32_t end_of_document() const override { return 0; }
  std::vector<uint32_t> encode(std::string_view text) const override {
    std::vector<uint32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }
  StatusOr<std::string> decode(const std::vector<uint32_t>& ids) const override {
    std::string text;
    text.reserve(ids.size());
    for (const uint32_t id : ids) {
      if (id >= kByteVocab) {
        return invalid_argument("token {} is outside the vocabulary of {}", id, kByteVocab);
      }
      text += static_cast<char>(id);
    }
    return text;
  }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

StatusOr<std::unique_ptr<Tokenizer>> load_tokenizer(const std::string& dataset_folder) {
  TESSERA_ASSIGN_OR_RETURN(const StoredManifest stored, read_manifest(dataset_folder));
  const DatasetManifest& manifest = stored.manifest;
  if (manifest.tokenizer == "bytes") return make_byte_tokenizer();
  if (manifest.tokenizer != "sentencepiece") {
    return failed_precondition(
        "{}: this dataset was imported as token ids, its tokenizer is not known; "
        "decode with the tool that made the ids",
        dataset_folder);
  }
  const std::string path = dataset_folder + "/" + kTokenizerFile;
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(path, kMaxTokenizerBytes));
  const Digest digest = digest_of(bytes);
  if (digest != stored.tokenizer_digest) {
    return data_loss(
        "{}: BLAKE2b is {}, the manifest has {}: it is not the tokenizer this dataset was "
        "made with; {}",
        path, digest.hex(), stored.tokenizer_digest.hex(), kRebuildHint);
  }
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, make_sentencepiece(bytes, path));
  if (tokenizer->vocab() != manifest.vocab) {
    return data_loss("{}: {} pieces, the manifest has a vocabulary of {}; {}", path,
                     tokenizer->vocab(), manifest.vocab, kRebuildHint);
  }
  return tokenizer;
}

}  // namespace tessera::data
