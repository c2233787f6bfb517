#include "data/sentencepiece_oracle.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <unordered_map>

namespace tessera::data {
namespace {

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& sentences) : sentences_(sentences) {}
  bool done() const override { return next_ == sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& sentences_;
  size_t next_ = 0;
};

}  // namespace

struct SentencePieceOracle::State {
  sentencepiece::SentencePieceProcessor processor;
  bool ok = false;
};

std::string SentencePieceOracle::train(const std::vector<std::string>& sentences,
                                       std::map<std::string, std::string> options) {
  options.merge(std::map<std::string, std::string>{
      {"minloglevel", "4"}, {"num_threads", "1"}, {"hard_vocab_limit", "false"}});
  Sentences iterator(sentences);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      std::unordered_map<std::string, std::string>(options.begin(), options.end()), &iterator,
      &model);
  return status.ok() ? model : "";
}

SentencePieceOracle::SentencePieceOracle(const std::string& model)
    : state_(std::make_unique<State>()) {
  state_->ok = state_->processor.LoadFromSerializedProto(model).ok();
}
SentencePieceOracle::~SentencePieceOracle() = default;

bool SentencePieceOracle::ok() const { return state_->ok; }

std::vector<uint32_t> SentencePieceOracle::encode(const std::string& text) const {
  std::vector<int> ids;
  state_->processor.Encode(text, &ids).IgnoreError();
  return {ids.begin(), ids.end()};
}

std::string SentencePieceOracle::decode(const std::vector<uint32_t>& ids) const {
  std::string text;
  state_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text).IgnoreError();
  return text;
}

uint32_t SentencePieceOracle::vocab() const {
  return static_cast<uint32_t>(state_->processor.GetPieceSize());
}
uint32_t SentencePieceOracle::end_id() const {
  return static_cast<uint32_t>(state_->processor.eos_id());
}

}  // namespace tessera::data
