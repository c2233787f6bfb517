#include <algorithm>
#include <optional>

#include "data/build_folder.h"
#include "data/dataset_check.h"
#include "data/document_reader.h"
#include "data/document_splitter.h"
#include "data/input_files.h"
#include "data/shard_writer.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/data/dataset.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

// One window of the default context (128) and its last target; a smaller split is no use to anyone.
constexpr uint64_t kMinSplitTokens = 129;
// With so many times `every` documents, whole documents are representative enough to validate on.
constexpr uint64_t kWholeDocumentFactor = 4;
constexpr uint64_t kProgressBytes = 4u << 20;

Status check_options(const BuildOptions& options) {
  if (!(options.validation_share >= 0 && options.validation_share <= 0.5)) {
    return invalid_argument(
        "validation_share is {}; give a share from 0 (no validation split) to 0.5",
        options.validation_share);
  }
  if (options.shard_tokens < kMinSplitTokens) {
    return invalid_argument("shard_tokens is {}; give at least {}", options.shard_tokens,
                            kMinSplitTokens);
  }
  return ok_status();
}

struct TokenizerFile {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string model;  // empty for bytes
  Digest digest;      // of `model`
};

StatusOr<TokenizerFile> open_tokenizer(const std::string& model_path) {
  TokenizerFile out;
  if (model_path.empty()) {
    out.tokenizer = make_byte_tokenizer();
    return out;
  }
  TESSERA_ASSIGN_OR_RETURN(out.model, read_file(model_path, kMaxTokenizerBytes));
  TESSERA_ASSIGN_OR_RETURN(out.tokenizer, make_sentencepiece(out.model, model_path));
  out.digest = digest_of(out.model);
  return out;
}

// Changes whenever the same command would give another dataset.
Digest fingerprint_of(const BuildOptions& options, const Digest& tokenizer,
                      const std::vector<InputFile>& files) {
  Encoder encoder;
  encoder.write(std::string("tessera dataset 1"));
  encoder.write(tokenizer);
  encoder.write(options.jsonl_field);
  encoder.write(options.validation_share);
  encoder.write(options.shard_tokens);
  for (const InputFile& file : files) {
    encoder.write(file.path);
    encoder.write(file.bytes);
    encoder.write(file.modified_ns);
  }
  return digest_of(encoder.take());
}

// What is in `out` already, if it was built from the same and no byte of it has changed since.
std::optional<DatasetManifest> already_built(const std::string& out, const Digest& fingerprint) {
  StatusOr<StoredManifest> stored = read_manifest(out);
  if (!stored.ok() || stored->fingerprint != fingerprint) return std::nullopt;
  if (!check_dataset(*stored, /*verify_hashes=*/true).ok()) return std::nullopt;
  return std::move(stored->manifest);
}

// True as soon as `documents` documents have been seen; reads no further.
StatusOr<bool> has_documents(const std::vector<InputFile>& files, const std::string& json_field,
                             uint64_t documents) {
  uint64_t count = 0;
  for (const InputFile& file : files) {
    if (!file.json_lines) {
      if (file.bytes > 0 && ++count >= documents) return true;
      continue;
    }
    TESSERA_ASSIGN_OR_RETURN(const auto reader, open_documents(file, json_field));
    for (Piece piece;;) {
      TESSERA_ASSIGN_OR_RETURN(const bool more, reader->next(&piece));
      if (!more) break;
      if (piece.ends_document && ++count >= documents) return true;
    }
  }
  return false;
}

// Calls the progress function every few MiB.
class Progress {
 public:
  Progress(const BuildOptions& options, const std::vector<InputFile>& files)
      : report_(options.progress) {
    for (const InputFile& file : files) total_ += file.bytes;
  }
  void update(uint64_t done) {
    if (done < reported_ + kProgressBytes) return;
    reported_ = done;
    if (report_) report_(std::min(done, total_), total_);
  }
  void finish() {
    if (report_) report_(total_, total_);
  }

 private:
  const std::function<void(uint64_t, uint64_t)>& report_;
  uint64_t total_ = 0;
  uint64_t reported_ = 0;
};

Status tokenize(const BuildOptions& options, const std::vector<InputFile>& files,
                const Tokenizer& tokenizer, DocumentSplitter* splitter) {
  Progress progress(options, files);
  uint64_t bytes_before = 0;
  for (const InputFile& file : files) {
    TESSERA_ASSIGN_OR_RETURN(const auto reader, open_documents(file, options.jsonl_field));
    for (Piece piece;;) {
      TESSERA_ASSIGN_OR_RETURN(const bool more, reader->next(&piece));
      if (!more) break;
      TESSERA_RETURN_IF_ERROR(splitter->append(tokenizer.encode(piece.text)));
      if (piece.ends_document) TESSERA_RETURN_IF_ERROR(splitter->end_document());
      progress.update(bytes_before + reader->stored_bytes_read());
    }
    bytes_before += file.bytes;
  }
  progress.finish();
  return ok_status();
}

Status check_enough(const char* split, uint64_t tokens, double validation_share) {
  if (tokens >= kMinSplitTokens) return ok_status();
  return invalid_argument(
      "the inputs give the {} split {} tokens, at least {} are needed; give more text "
      "or another validation_share than {} (0: no validation split)",
      split, tokens, kMinSplitTokens, validation_share);
}

Status write_splits(const BuildOptions& options, const std::vector<InputFile>& files,
                    const Tokenizer& tokenizer, const std::string& folder,
                    DatasetManifest* manifest) {
  manifest->tokenizer = tokenizer.kind();
  manifest->vocab = tokenizer.vocab();
  manifest->token_bytes = manifest->vocab <= 65536 ? 2 : 4;
  SplitRule rule{.validation_share = options.validation_share};
  if (options.validation_share > 0) {
    TESSERA_ASSIGN_OR_RETURN(
        rule.whole_documents,
        has_documents(files, options.jsonl_field, kWholeDocumentFactor * rule.every()));
  }
  ShardWriter train(folder, "train", manifest->token_bytes, manifest->vocab, options.shard_tokens);
  ShardWriter validation(folder, "validation", manifest->token_bytes, manifest->vocab,
                         options.shard_tokens);
  DocumentSplitter splitter(rule, tokenizer.end_of_document(), folder, &train, &validation);
  TESSERA_RETURN_IF_ERROR(tokenize(options, files, tokenizer, &splitter));
  TESSERA_RETURN_IF_ERROR(check_enough("training", train.tokens(), options.validation_share));
  if (options.validation_share > 0) {
    TESSERA_RETURN_IF_ERROR(
        check_enough("validation", validation.tokens(), options.validation_share));
  }
  TESSERA_ASSIGN_OR_RETURN(manifest->train, train.finish());
  TESSERA_ASSIGN_OR_RETURN(manifest->validation, validation.finish());
  return ok_status();
}

}  // namespace

StatusOr<DatasetManifest> build_dataset(const BuildOptions& options) {
  TESSERA_RETURN_IF_ERROR(check_options(options));
  TESSERA_ASSIGN_OR_RETURN(const std::string out, resolve_output(options.out, options.inputs));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<InputFile> files, list_input_files(options.inputs));
  TESSERA_ASSIGN_OR_RETURN(const TokenizerFile tokenizer,
                           open_tokenizer(options.sentencepiece_model));
  const Digest fingerprint = fingerprint_of(options, tokenizer.digest, files);
  if (auto existing = already_built(out, fingerprint)) return *std::move(existing);
  TESSERA_RETURN_IF_ERROR(check_replaceable(out, options.force));

  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<BuildFolder> folder, BuildFolder::create(out));
  StoredManifest stored;
  stored.fingerprint = fingerprint;
  stored.tokenizer_digest = tokenizer.digest;
  TESSERA_RETURN_IF_ERROR(
      write_splits(options, files, *tokenizer.tokenizer, folder->path(), &stored.manifest));
  if (!tokenizer.model.empty()) {
    TESSERA_RETURN_IF_ERROR(
        write_file_atomic(folder->path() + "/" + kTokenizerFile, tokenizer.model));
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<InputFile> files_now,
                           list_input_files(options.inputs));
  if (fingerprint_of(options, tokenizer.digest, files_now) != fingerprint) {
    return error(
        absl::StatusCode::kAborted,
        "the inputs changed while they were read; run this again when nothing writes to them");
  }
  TESSERA_RETURN_IF_ERROR(folder->publish(stored));
  stored.manifest.folder = out;
  return std::move(stored.manifest);
}

}  // namespace tessera::data
