#include "data/document_reader.h"

#include <nlohmann/json.hpp>

#include "data/byte_source.h"

namespace tessera::data {
namespace {

// Takes the next piece off `text` from `*offset` on; `more`: text will follow what is there now.
void take_piece(const std::string& text, size_t* offset, bool more, Piece* piece) {
  const std::string_view rest = std::string_view(text).substr(*offset);
  size_t size = rest.size();
  if (more || size > kPieceBytes) size = cut_point(rest.substr(0, kPieceBytes));
  piece->text = rest.substr(0, size);
  *offset += size;
  piece->ends_document = !more && *offset == text.size();
}

// Appends content to `*buffer` until it has `size` bytes or the file ends. True at the end.
StatusOr<bool> fill(ByteSource* source, size_t size, std::string* buffer) {
  const size_t have = buffer->size();
  if (have >= size) return false;
  buffer->resize(size);
  TESSERA_ASSIGN_OR_RETURN(const size_t count, source->read(buffer->data() + have, size - have));
  buffer->resize(have + count);
  return have + count < size;
}

class TextReader : public DocumentReader {
 public:
  explicit TextReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  StatusOr<bool> next(Piece* piece) override {
    buffer_.erase(0, offset_);
    offset_ = 0;
    // One byte more than a piece shows whether the document goes on.
    TESSERA_ASSIGN_OR_RETURN(const bool at_end, fill(source_.get(), kPieceBytes + 1, &buffer_));
    if (buffer_.empty()) return false;
    take_piece(buffer_, &offset_, !at_end, piece);
    return true;
  }
  uint64_t stored_bytes_read() const override { return source_->stored_bytes_read(); }

 private:
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  size_t offset_ = 0;
};

class JsonLinesReader : public DocumentReader {
 public:
  JsonLinesReader(std::string path, std::string field, std::unique_ptr<ByteSource> source)
      : path_(std::move(path)), field_(std::move(field)), source_(std::move(source)) {}

  StatusOr<bool> next(Piece* piece) override {
    while (text_offset_ == text_.size()) {
      std::string_view line;
      TESSERA_ASSIGN_OR_RETURN(const bool found, next_line(&line));
      if (!found) return false;
      ++line_number_;
      text_offset_ = 0;
      text_.clear();
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      TESSERA_ASSIGN_OR_RETURN(text_, text_of(line));
    }
    take_piece(text_, &text_offset_, false, piece);
    return true;
  }
  uint64_t stored_bytes_read() const override { return source_->stored_bytes_read(); }

 private:
  // `*line` is valid until the next call.
  StatusOr<bool> next_line(std::string_view* line) {
    size_t searched = line_begin_;
    while (true) {
      const size_t end = buffer_.find('\n', searched);
      if (end != std::string::npos) {
        *line = std::string_view(buffer_).substr(line_begin_, end - line_begin_);
        line_begin_ = end + 1;
        return true;
      }
      if (at_end_) {
        *line = std::string_view(buffer_).substr(line_begin_);
        const bool found = line_begin_ < buffer_.size();
        line_begin_ = buffer_.size();
        return found;
      }
      buffer_.erase(0, line_begin_);
      line_begin_ = 0;
      searched = buffer_.size();
      if (buffer_.size() > kMaxLineBytes) {
        return invalid_argument(
            "{}:{}: a line of more than {} bytes; split it, or give the file another "
            "name than .jsonl if it is plain text",
            path_, line_number_ + 1, kMaxLineBytes);
      }
      TESSERA_ASSIGN_OR_RETURN(at_end_,
                               fill(source_.get(), buffer_.size() + kPieceBytes, &buffer_));
    }
  }

  StatusOr<std::string> text_of(std::string_view line) const {
    const nlohmann::json value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded() || !value.is_object()) {
      return invalid_argument("{}:{}: not a JSON object; every line of a .jsonl file must be one",
                              path_, line_number_);
    }
    const auto field = value.find(field_);
    if (field == value.end()) {
      std::string names;
      for (const auto& item : value.items()) names += (names.empty() ? "" : ", ") + item.key();
      return invalid_argument(
          "{}:{}: no field \"{}\" (there are: {:.200}); name the field that holds the "
          "text",
          path_, line_number_, field_, names);
    }
    if (!field->is_string()) {
      return invalid_argument("{}:{}: the field \"{}\" is a {}, not a string", path_, line_number_,
                              field_, field->type_name());
    }
    return field->get<std::string>();
  }

  const std::string path_;
  const std::string field_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  size_t line_begin_ = 0;
  uint64_t line_number_ = 0;
  bool at_end_ = false;
  std::string text_;
  size_t text_offset_ = 0;
};

}  // namespace

size_t cut_point(std::string_view text) {
  for (const char separator : {'\n', ' '}) {
    const size_t place = text.rfind(separator);
    if (place != std::string_view::npos) return place + 1;
  }
  // The first byte of the last character, which may go on behind the cut; a character has at most 4
  // bytes.
  for (size_t back = 1; back <= 4 && back < text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    return byte < 0x80 ? text.size() : text.size() - back;
  }
  return text.size();
}

StatusOr<std::unique_ptr<DocumentReader>> open_documents(const InputFile& file,
                                                         const std::string& json_field) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> source,
                           open_byte_source(file.path, file.gzip));
  if (!file.json_lines) return std::make_unique<TextReader>(std::move(source));
  return std::make_unique<JsonLinesReader>(file.path, json_field, std::move(source));
}

}  // namespace tessera::data
