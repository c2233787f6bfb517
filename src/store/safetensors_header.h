// The JSON header of a safetensors file, read as a stream: its nesting is known (three levels), so
// anything deeper or of another form is refused at once, and no document tree of a hostile header
// is ever built.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::store {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // offsets into the data
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of the text
  std::map<std::string, std::string> metadata;
};

// The form only: every entry has a known dtype, a shape of at most kMaxSafetensorsRank numbers and
// two offsets, and no name comes twice. INVALID_ARGUMENT says what is wrong.
StatusOr<SafetensorsHeader> parse_safetensors_header(std::string_view json);

// Elements of the shape times the bytes of the dtype; nothing if that does not fit 64 bits or a
// size is negative.
std::optional<uint64_t> safetensors_data_bytes(std::string_view dtype,
                                               const std::vector<int64_t>& shape);

// Text from outside for a message: in quotes, cut short, and with nothing in it but printable
// ASCII.
std::string safe_text(const std::string& text);

}  // namespace tessera::store
