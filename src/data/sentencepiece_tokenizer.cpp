#include <climits>

#include "data/sentencepiece_encoder.h"
#include "data/sentencepiece_model.h"
#include "data/text_normalizer.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/files.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

using PieceKind = SentencePieceModel::PieceKind;

void append_with_spaces(std::string_view piece, std::string* out) {
  while (!piece.empty()) {
    if (piece.starts_with(kSpaceSymbol)) {
      *out += ' ';
      piece.remove_prefix(kSpaceSymbol.size());
    } else {
      *out += piece.front();
      piece.remove_prefix(1);
    }
  }
}

// A run of byte pieces; what is no valid UTF-8 becomes U+FFFD, byte by byte.
void append_bytes(std::string_view bytes, std::string* out) {
  while (!bytes.empty()) {
    const size_t character = utf8_character_bytes(bytes);
    *out += character > 0 ? bytes.substr(0, character) : kReplacementCharacter;
    bytes.remove_prefix(std::max<size_t>(character, 1));
  }
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model,
                         std::unique_ptr<SentencePieceEncoder> encoder, TextNormalizer normalizer)
      : model_(std::move(model)), encoder_(std::move(encoder)), normalizer_(std::move(normalizer)) {
    byte_of_.assign(model_->pieces.size(), -1);
    for (size_t byte = 0; byte < model_->byte_ids.size(); ++byte) {
      byte_of_[model_->byte_ids[byte]] = static_cast<int16_t>(byte);
    }
  }

  std::string kind() const override { return "sentencepiece"; }
  uint32_t vocab() const override { return static_cast<uint32_t>(model_->pieces.size()); }
  uint32_t end_of_document() const override { return model_->end_id; }

  std::vector<uint32_t> encode(std::string_view text) const override {
    const std::string normalized = normalizer_.normalize(text);
    std::vector<uint32_t> ids;
    bool after_unknown = false;
    for (const SentencePieceEncoder::Match& match : encoder_->segment(normalized)) {
      const bool unknown = match.id == model_->unknown_id;
      if (unknown && model_->byte_fallback) {
        for (const char byte : match.text) {
          ids.push_back(model_->byte_ids[static_cast<unsigned char>(byte)]);
        }
      } else if (!unknown || !after_unknown) {  // a run of unknown characters is one token
        ids.push_back(match.id);
      }
      after_unknown = unknown;
    }
    return ids;
  }

  StatusOr<std::string> decode(const std::vector<uint32_t>& ids) const override {
    std::string text, bytes;
    bool at_begin = true;  // a space of the dummy prefix may still come
    bool dropped_prefix = false;
    for (const uint32_t id : ids) {
      if (id >= model_->pieces.size()) {
        return invalid_argument("token {} is outside the vocabulary of {}", id, vocab());
      }
      if (byte_of_[id] >= 0) {
        bytes += static_cast<char>(byte_of_[id]);
        continue;
      }
      append_bytes(bytes, &text);
      bytes.clear();
      if (dropped_prefix || !text.empty()) at_begin = false;
      dropped_prefix = append_piece(model_->pieces[id], at_begin, &text);
    }
    append_bytes(bytes, &text);
    return text;
  }

 private:
  // True if a leading space was left out that ends the search for one.
  bool append_piece(const SentencePieceModel::Piece& piece, bool at_begin,
                    std::string* text) const {
    if (piece.kind == PieceKind::kControl) return false;
    if (piece.kind == PieceKind::kUnknown) {
      *text += model_->unknown_surface;
      return false;
    }
    std::string_view rest = piece.text;
    bool dropped = false;
    if (at_begin && (model_->add_dummy_prefix || model_->remove_extra_whitespaces) &&
        rest.starts_with(kSpaceSymbol)) {
      rest.remove_prefix(kSpaceSymbol.size());
      dropped = !model_->remove_extra_whitespaces;
    }
    append_with_spaces(rest, text);
    return dropped;
  }

  const std::unique_ptr<SentencePieceModel> model_;
  const std::unique_ptr<SentencePieceEncoder> encoder_;
  const TextNormalizer normalizer_;
  std::vector<int16_t> byte_of_;  // by id; -1: not a byte piece
};

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> make_sentencepiece(std::string_view model_bytes,
                                                        const std::string& name) {
  TESSERA_ASSIGN_OR_RETURN(SentencePieceModel parsed, parse_sentencepiece_model(model_bytes, name));
  auto model = std::make_unique<SentencePieceModel>(std::move(parsed));
  auto encoder = std::make_unique<SentencePieceEncoder>(*model);
  TESSERA_ASSIGN_OR_RETURN(TextNormalizer normalizer,
                           TextNormalizer::create(*model, &encoder->user_defined(), name));
  return std::make_unique<SentencePieceTokenizer>(std::move(model), std::move(encoder),
                                                  std::move(normalizer));
}

StatusOr<std::unique_ptr<Tokenizer>> load_sentencepiece(const std::string& model_path) {
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(model_path, kMaxTokenizerBytes));
  return make_sentencepiece(bytes, model_path);
}

}  // namespace tessera::data
