#include "data/text_normalizer.h"

#include <cstring>

#include "tessera/base/bytes.h"

namespace tessera::data {
namespace {

bool continues(std::string_view text, size_t place) {
  return place < text.size() && (static_cast<unsigned char>(text[place]) & 0xC0) == 0x80;
}

// A unit of the double array, 32 bits:
//   an inner node: label in bits 0-7 (bit 31 zero), bit 8 = a key ends here, offset to its children
//   in the rest; a leaf: bit 31 set, value in bits 0-30.
uint32_t unit_label(uint32_t unit) { return unit & 0x800000FFu; }
bool unit_has_leaf(uint32_t unit) { return (unit & 0x100u) != 0; }
uint32_t unit_value(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t unit_offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); }

}  // namespace

size_t utf8_character_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return 1;
  if (!continues(text, 1)) return 0;
  const auto second = static_cast<unsigned char>(text[1]);
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if ((lead & 0xF0) == 0xE0) {
    // Not longer than needed, not a surrogate.
    if (!continues(text, 2) || (lead == 0xE0 && second < 0xA0) ||
        (lead == 0xED && second >= 0xA0)) {
      return 0;
    }
    return 3;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    // Not longer than needed, not above U+10FFFF.
    if (!continues(text, 2) || !continues(text, 3) || (lead == 0xF0 && second < 0x90) ||
        (lead == 0xF4 && second >= 0x90)) {
      return 0;
    }
    return 4;
  }
  return 0;
}

StatusOr<TextNormalizer> TextNormalizer::create(const SentencePieceModel& model,
                                                const PieceTrie* protected_pieces,
                                                const std::string& name) {
  TextNormalizer normalizer;
  normalizer.protected_ = protected_pieces;
  normalizer.add_dummy_prefix_ = model.add_dummy_prefix;
  normalizer.remove_extra_whitespaces_ = model.remove_extra_whitespaces;
  normalizer.escape_whitespaces_ = model.escape_whitespaces;
  if (model.character_map.empty()) return normalizer;
  ByteReader reader(model.character_map);
  const auto trie_bytes = reader.number<uint32_t>();
  const std::string_view trie = reader.raw(trie_bytes);
  if (!reader.ok() || trie.size() % sizeof(uint32_t) != 0 || trie.empty()) {
    return data_loss("{}: its character map is broken ({} bytes, {} of them a trie)", name,
                     model.character_map.size(), trie_bytes);
  }
  normalizer.units_.resize(trie.size() / sizeof(uint32_t));
  std::memcpy(normalizer.units_.data(), trie.data(), trie.size());
  normalizer.replacements_ = reader.raw(reader.remaining());
  return normalizer;
}

std::pair<std::string_view, size_t> TextNormalizer::normalize_prefix(std::string_view text) const {
  if (const size_t kept = protected_->longest_prefix(text); kept > 0) {
    return {text.substr(0, kept), kept};
  }
  // The longest key of the character map. Every index is checked: the map came with the model.
  size_t longest = 0;
  uint32_t place = 0;
  if (!units_.empty()) {
    uint32_t node = unit_offset(units_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      node ^= byte;
      if (node >= units_.size() || unit_label(units_[node]) != byte) break;
      const uint32_t unit = units_[node];
      node ^= unit_offset(unit);
      if (unit_has_leaf(unit) && node < units_.size()) {
        longest = i + 1;
        place = unit_value(units_[node]);
      }
    }
  }
  if (longest > 0 && place < replacements_.size()) {
    const size_t end = replacements_.find('\0', place);
    return {std::string_view(replacements_).substr(place, end - place), longest};
  }
  const size_t character = utf8_character_bytes(text);
  if (character == 0) return {kReplacementCharacter, 1};
  return {text.substr(0, character), character};
}

std::string_view TextNormalizer::without_leading_spaces(std::string_view text) const {
  while (!text.empty()) {
    const auto [replacement, consumed] = normalize_prefix(text);
    if (replacement != " ") break;
    text.remove_prefix(consumed);
  }
  return text;
}

std::string TextNormalizer::normalize(std::string_view text) const {
  if (remove_extra_whitespaces_) text = without_leading_spaces(text);
  if (text.empty()) return {};
  const std::string_view space = escape_whitespaces_ ? kSpaceSymbol : " ";
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  if (add_dummy_prefix_) out += space;
  bool after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    const auto [replacement, consumed] = normalize_prefix(text);
    std::string_view rest = replacement;
    while (after_space && rest.starts_with(' ')) rest.remove_prefix(1);
    for (const char byte : rest) {
      if (byte == ' ') {
        out += space;
      } else {
        out += byte;
      }
    }
    if (!rest.empty()) after_space = remove_extra_whitespaces_ && rest.ends_with(' ');
    text.remove_prefix(consumed);
  }
  if (remove_extra_whitespaces_) {
    while (out.ends_with(space)) out.erase(out.size() - space.size());
  }
  return out;
}

}  // namespace tessera::data
