#include "store/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "tessera/store/safetensors.h"

namespace tessera::store {
namespace {

// Receives the parser's events. Where it stands is `state_`; an event that has no place there ends
// the parse.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsHeader header;
  std::string problem;

  bool start_object(size_t) override {
    if (state_ == State::kStart) return enter(State::kTop);
    if (state_ == State::kMetadataValue) return enter(State::kMetadata);
    if (state_ == State::kTensorValue) return enter(State::kTensor);
    return refuse("an object");
  }

  bool end_object() override {
    if (state_ == State::kTop) return enter(State::kEnd);
    if (state_ == State::kTensor && !finish_tensor()) return false;
    return enter(State::kTop);
  }

  bool key(string_t& name) override {
    if (state_ == State::kTop) {
      if (!names_.insert(name).second)
        return fail(fmt::format("{} is there twice", safe_text(name)));
      if (name == "__metadata__") return enter(State::kMetadataValue);
      header.entries.emplace_back().name = name;
      have_dtype_ = have_shape_ = have_offsets_ = false;
      offsets_.clear();
      return enter(State::kTensorValue);
    }
    if (state_ == State::kMetadata) {
      if (header.metadata.contains(name)) {
        return fail(fmt::format("the metadata {} is there twice", safe_text(name)));
      }
      metadata_key_ = name;
      return enter(State::kMetadataText);
    }
    if (name == "dtype") return field(&have_dtype_, State::kDtype, name);
    if (name == "shape") return field(&have_shape_, State::kShapeValue, name);
    if (name == "data_offsets") return field(&have_offsets_, State::kOffsetsValue, name);
    return fail(
        fmt::format("tensor {} has an unknown field {}", safe_text(entry().name), safe_text(name)));
  }

  bool string(string_t& text) override {
    if (state_ == State::kMetadataText) {
      header.metadata.emplace(std::move(metadata_key_), text);
      return enter(State::kMetadata);
    }
    if (state_ != State::kDtype) return refuse("a string");
    if (safetensors_element_bytes(text) == 0) {
      return fail(fmt::format("tensor {} has the unknown dtype {}", safe_text(entry().name),
                              safe_text(text)));
    }
    entry().dtype = text;
    return enter(State::kTensor);
  }

  bool start_array(size_t) override {
    if (state_ == State::kShapeValue) return enter(State::kShape);
    if (state_ == State::kOffsetsValue) return enter(State::kOffsets);
    return refuse("an array");
  }

  bool end_array() override {
    if (state_ == State::kOffsets) {
      if (offsets_.size() != 2) return fail_offsets();
      entry().begin = offsets_[0];
      entry().end = offsets_[1];
    }
    return enter(State::kTensor);
  }

  bool number_unsigned(uint64_t value) override {
    if (state_ == State::kShape) {
      if (entry().shape.size() == kMaxSafetensorsRank || value > INT64_MAX) {
        return fail(fmt::format("tensor {} has more than {} dimensions, or one over 2^63 - 1",
                                safe_text(entry().name), kMaxSafetensorsRank));
      }
      entry().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ != State::kOffsets) return refuse("a number");
    if (offsets_.size() == 2) return fail_offsets();
    offsets_.push_back(value);
    return true;
  }

  bool number_integer(int64_t) override { return refuse("a negative number"); }
  bool number_float(double, const string_t&) override { return refuse("a fraction"); }
  bool boolean(bool) override { return refuse("a truth value"); }
  bool null() override { return refuse("null"); }
  bool binary(binary_t&) override { return refuse("binary data"); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& failure) override {
    return fail(fmt::format("not JSON at byte {}: {}", position, safe_text(failure.what())));
  }

 private:
  enum class State {
    kStart,
    kTop,
    kMetadataValue,
    kMetadata,
    kMetadataText,
    kTensorValue,
    kTensor,
    kDtype,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kEnd,
  };

  SafetensorsEntry& entry() { return header.entries.back(); }
  bool enter(State state) {
    state_ = state;
    return true;
  }
  bool fail(std::string text) {
    problem = std::move(text);
    return false;
  }
  bool refuse(const char* what) {
    const std::string where = header.entries.empty()
                                  ? "at its start"
                                  : fmt::format("at tensor {}", safe_text(entry().name));
    return fail(fmt::format("{} where none belongs, {}", what, where));
  }
  bool fail_offsets() {
    return fail(
        fmt::format("tensor {} must have exactly two data_offsets", safe_text(entry().name)));
  }
  bool field(bool* have, State next, const std::string& name) {
    if (*have)
      return fail(fmt::format("tensor {} has {} twice", safe_text(entry().name), safe_text(name)));
    *have = true;
    return enter(next);
  }
  bool finish_tensor() {
    if (have_dtype_ && have_shape_ && have_offsets_) return true;
    return fail(
        fmt::format("tensor {} lacks dtype, shape or data_offsets", safe_text(entry().name)));
  }

  State state_ = State::kStart;
  std::unordered_set<std::string> names_;
  std::string metadata_key_;
  std::vector<uint64_t> offsets_;
  bool have_dtype_ = false;
  bool have_shape_ = false;
  bool have_offsets_ = false;
};

}  // namespace

std::string safe_text(const std::string& text) {
  constexpr size_t kMostBytes = 160;
  const bool whole = text.size() <= kMostBytes;
  return nlohmann::json(whole ? text : text.substr(0, kMostBytes) + "...")
      .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

StatusOr<SafetensorsHeader> parse_safetensors_header(std::string_view json) {
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(json, &reader)) return invalid_argument("{}", reader.problem);
  return std::move(reader.header);
}

std::optional<uint64_t> safetensors_data_bytes(std::string_view dtype,
                                               const std::vector<int64_t>& shape) {
  uint64_t bytes = safetensors_element_bytes(dtype);
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes))
      return std::nullopt;
  }
  return bytes;
}

}  // namespace tessera::store
