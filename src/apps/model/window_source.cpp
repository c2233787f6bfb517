#include "apps/model/window_source.h"

#include <utility>

#include "tessera/base/files.h"
#include "tessera/data/dataset.h"
#include "tessera/data/token_shard.h"

namespace tessera::apps {
namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;

class TextWindows final : public WindowSource {
 public:
  TextWindows(std::vector<uint32_t> tokens, uint32_t context)
      : tokens_(std::move(tokens)), context_(context) {}

  uint64_t count() const override { return tokens_.empty() ? 0 : (tokens_.size() - 1) / context_; }
  Status append(uint64_t window, std::vector<uint32_t>* tokens) override {
    const auto begin = tokens_.begin() + static_cast<int64_t>(window * context_);
    tokens->insert(tokens->end(), begin, begin + context_ + 1);
    return ok_status();
  }

 private:
  const std::vector<uint32_t> tokens_;
  const uint32_t context_;
};

// Reads the shards in order, one open at a time.
class DatasetWindows final : public WindowSource {
 public:
  DatasetWindows(std::string folder, std::vector<core::TokenShard> shards, uint32_t context)
      : folder_(std::move(folder)), shards_(std::move(shards)), context_(context) {}

  uint64_t count() const override { return core::window_count(shards_, context_); }
  Status append(uint64_t window, std::vector<uint32_t>* tokens) override {
    size_t shard = 0;
    for (uint64_t here = windows_in(shard); window >= here; here = windows_in(shard)) {
      window -= here;
      ++shard;
    }
    if (reader_ == nullptr || shard != open_shard_) {
      TESSERA_ASSIGN_OR_RETURN(reader_,
                               data::TokenShardReader::open(folder_ + "/" + shards_[shard].file));
      open_shard_ = shard;
    }
    TESSERA_ASSIGN_OR_RETURN(const std::vector<uint32_t> read,
                             reader_->read(window * context_, uint64_t{context_} + 1));
    tokens->insert(tokens->end(), read.begin(), read.end());
    return ok_status();
  }

 private:
  uint64_t windows_in(size_t shard) const {
    TESSERA_CHECK(shard < shards_.size());
    return core::window_count({shards_[shard]}, context_);
  }

  const std::string folder_;
  const std::vector<core::TokenShard> shards_;
  const uint32_t context_;
  std::unique_ptr<data::TokenShardReader> reader_;
  size_t open_shard_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<WindowSource>> open_text(const std::string& path,
                                                  const data::Tokenizer& tokenizer,
                                                  uint32_t context) {
  const StatusOr<std::string> text = read_file(path, kMaxTextBytes);
  if (absl::IsInvalidArgument(text.status())) {
    return annotate(text.status(),
                    "build a dataset with 'tesseractl data build' and give it with --data");
  }
  if (!text.ok()) return text.status();
  std::vector<uint32_t> tokens = tokenizer.encode(*text);
  const size_t count = tokens.size();
  auto windows = std::make_unique<TextWindows>(std::move(tokens), context);
  if (windows->count() > 0) return windows;
  return invalid_argument("{}: {} tokens; one window of model.context + 1 needs {}", path, count,
                          uint64_t{context} + 1);
}

StatusOr<std::unique_ptr<WindowSource>> open_dataset(const std::string& folder,
                                                     const std::string& split,
                                                     const core::ModelSpec& model,
                                                     const core::DataPlan& trained_on) {
  TESSERA_ASSIGN_OR_RETURN(data::DatasetManifest manifest,
                           data::load_dataset(folder, /*verify_hashes=*/false));
  if (!trained_on.tokenizer.empty() && manifest.tokenizer != trained_on.tokenizer) {
    return failed_precondition(
        "{}: its tokenizer is '{}', but the model was trained on tokens of '{}'; evaluate on a "
        "dataset made like the training data",
        folder, manifest.tokenizer, trained_on.tokenizer);
  }
  if (manifest.vocab > model.vocab) {
    return failed_precondition(
        "{}: a vocabulary of {}, but model.vocab is {}: the dataset is not of this model", folder,
        manifest.vocab, model.vocab);
  }
  auto windows = std::make_unique<DatasetWindows>(
      folder, split == "train" ? std::move(manifest.train) : std::move(manifest.validation),
      model.context);
  if (windows->count() > 0) return windows;
  return invalid_argument(
      "{}: the {} split has no window of model.context + 1 = {} tokens; build the dataset with "
      "more "
      "text or a larger validation share",
      folder, split, uint64_t{model.context} + 1);
}

}  // namespace tessera::apps
