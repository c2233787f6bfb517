// Text to token ids and back. Thread-safe after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string kind() const = 0;  // "bytes" or "sentencepiece"
  virtual uint32_t vocab() const = 0;
  // The id behind every document of a dataset: 0 for bytes, </s> for SentencePiece. Generation may stop at it.
  virtual uint32_t end_of_document() const = 0;
  virtual std::vector<uint32_t> encode(std::string_view text) const = 0;
  // Ids outside the vocabulary are an error.
  virtual StatusOr<std::string> decode(const std::vector<uint32_t>& ids) const = 0;
};

std::unique_ptr<Tokenizer> make_byte_tokenizer();
StatusOr<std::unique_ptr<Tokenizer>> load_sentencepiece(const std::string& model_path);
// The tokenizer of a dataset folder (its manifest says which; a SentencePiece model lies beside it).
StatusOr<std::unique_ptr<Tokenizer>> load_tokenizer(const std::string& dataset_folder);

}  // namespace tessera::data
