// Little-endian writing and bounds-checked reading of bytes, and hexadecimal text.
// A reader never throws and never reads past its end: after the first failure ok() is false and every read gives zeros.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace tessera {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire formats are written as in memory");

class ByteWriter {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes_.append(raw, sizeof(T));
  }
  void raw(const void* data, size_t size) { bytes_.append(static_cast<const char*>(data), size); }
  // Length (u32) and content.
  void text(std::string_view value) {
    number(static_cast<uint32_t>(value.size()));
    bytes_.append(value);
  }
  const std::string& bytes() const { return bytes_; }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
  T number() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    if (!need(sizeof(T))) return value;
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view raw(size_t size) {
    if (!need(size)) return {};
    std::string_view value = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return value;
  }
  std::string_view text() { return raw(number<uint32_t>()); }

  void fail() { ok_ = false; }
  bool ok() const { return ok_; }
  size_t remaining() const { return rest_.size(); }
  // True when nothing failed and nothing is left.
  bool done() const { return ok_ && rest_.empty(); }

 private:
  bool need(size_t size) {
    if (!ok_ || rest_.size() < size) {
      ok_ = false;
      return false;
    }
    return true;
  }
  std::string_view rest_;
  bool ok_ = true;
};

std::string to_hex(std::string_view bytes);
// Nothing if `text` has an odd length or another character than 0-9, a-f, A-F.
std::optional<std::string> from_hex(std::string_view text);

}  // namespace tessera
