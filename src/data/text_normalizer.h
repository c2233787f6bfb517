// What SentencePiece does to text before it looks for pieces: replaces characters by the model's
// map, squeezes and escapes spaces, mends broken UTF-8. Immutable after construction, so safe to
// share.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/piece_trie.h"
#include "data/sentencepiece_model.h"
#include "tessera/base/status.h"

namespace tessera::data {

// Stands for a space inside pieces: U+2581.
inline constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";
inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

// Bytes of the valid UTF-8 character that `text` starts with; 0 if it starts with something else.
size_t utf8_character_bytes(std::string_view text);

class TextNormalizer {
 public:
  // `protected_pieces` (outlives it): strings that are left as they are.
  static StatusOr<TextNormalizer> create(const SentencePieceModel& model,
                                         const PieceTrie* protected_pieces,
                                         const std::string& name);
  std::string normalize(std::string_view text) const;

 private:
  TextNormalizer() = default;
  // What the first characters of `text` become, and how many bytes they are.
  std::pair<std::string_view, size_t> normalize_prefix(std::string_view text) const;
  std::string_view without_leading_spaces(std::string_view text) const;

  // The character map: a double-array trie (darts-clone's units) whose values are places in
  // `replacements_`, where a zero byte ends each replacement.
  std::vector<uint32_t> units_;
  std::string replacements_;
  const PieceTrie* protected_ = nullptr;
  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
  bool escape_whitespaces_ = true;
};

}  // namespace tessera::data
