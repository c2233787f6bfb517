// The shape of a type with fields(), as text: every field's name and kind, in order. Bytes of one shape are not taken for
// another's: what stores encode()d values for a later version of the program keeps the shape's digest beside them.
#pragma once

#include <string>

#include "tessera/base/archive.h"

namespace tessera {

class SchemaWriter {
 public:
  template <class T>
  SchemaWriter& operator()(const char* name, const T&) {
    text_ += name;
    text_ += ':';
    describe(static_cast<const T*>(nullptr));
    text_ += ',';
    return *this;
  }
  std::string take() { return std::move(text_); }

  template <class T>
  void describe(const T*) {
    if constexpr (std::is_floating_point_v<T>) {
      text_ += fmt::format("float{}", sizeof(T));
    } else if constexpr (std::is_enum_v<T> || std::is_arithmetic_v<T>) {
      text_ += fmt::format("whole{}", sizeof(T));
    } else if constexpr (HasFields<T>) {
      T value{};
      text_ += '{';
      value.fields(*this);
      text_ += '}';
    } else {
      container(static_cast<const T*>(nullptr));
    }
  }

 private:
  void container(const std::string*) { text_ += "text"; }
  template <class Tag>
  void container(const Bytes32<Tag>*) {
    text_ += "bytes32";
  }
  template <size_t N>
  void container(const std::array<uint8_t, N>*) {
    text_ += fmt::format("bytes{}", N);
  }
  template <class T>
  void container(const std::optional<T>*) {
    item<T>('?');
  }
  template <class T>
  void container(const std::vector<T>*) {
    item<T>('*');
  }
  template <class T>
  void container(const std::deque<T>*) {
    item<T>('*');
  }
  template <class T>
  void container(const std::set<T>*) {
    item<T>('*');
  }
  template <class K, class V>
  void container(const std::map<K, V>*) {
    item<K>('<');
    item<V>('>');
  }
  template <class T>
  void item(char mark) {
    text_ += mark;
    describe(static_cast<const T*>(nullptr));
  }
  std::string text_;
};

template <class T>
std::string schema_of() {
  SchemaWriter writer;
  writer.describe(static_cast<const T*>(nullptr));
  return writer.take();
}

}  // namespace tessera
