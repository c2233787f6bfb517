// The documents of an input file, in pieces of bounded size. A text file is one document; in JSON
// lines every line is one. Documents without text are left out. One thread an object.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/input_files.h"
#include "tessera/base/status.h"

namespace tessera::data {

// Tokenizers see at most this much at a time; longer documents are cut, if possible after a line
// end.
inline constexpr size_t kPieceBytes = 256u << 10;
inline constexpr size_t kMaxLineBytes = 64u << 20;  // of a .jsonl file

struct Piece {
  std::string text;
  bool ends_document = false;
};

class DocumentReader {
 public:
  virtual ~DocumentReader() = default;
  // False after the last piece of the file.
  virtual StatusOr<bool> next(Piece* piece) = 0;
  virtual uint64_t stored_bytes_read() const = 0;
};

// `json_field`: the field of a JSON line that holds the text.
StatusOr<std::unique_ptr<DocumentReader>> open_documents(const InputFile& file,
                                                         const std::string& json_field);

// Where to cut `text`, which goes on behind it: after the last line end, else after the last space,
// else between two UTF-8 characters. In 1..text.size().
size_t cut_point(std::string_view text);

}  // namespace tessera::data
