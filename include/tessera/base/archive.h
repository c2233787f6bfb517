// One definition of a struct's fields gives its canonical bytes, its checked parser and its JSON.
//
//   struct Lease {
//     uint64_t microbatch = 0;
//     std::vector<uint32_t> pathway;
//     template <class A> void fields(A& archive) { archive("microbatch", microbatch)("pathway", pathway); }
//   };
//   std::string bytes = encode(lease);  bool ok = decode(bytes, &lease);  std::string json = to_json(lease);
//
// Bytes: numbers little-endian, bool and enums as their integer, strings and containers behind a u32 count.
// Parsing trusts nothing: a count is checked against the bytes that are left before anything is allocated.
#pragma once

#include <array>
#include <cmath>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <fmt/format.h>

#include "tessera/base/bytes.h"
#include "tessera/base/ids.h"

namespace tessera {

class Encoder;
template <class T>
concept HasFields = requires(T& value, Encoder& archive) { value.fields(archive); };

class Encoder {
 public:
  template <class T>
  Encoder& operator()(const char*, const T& value) {
    write(value);
    return *this;
  }
  std::string take() { return writer_.take(); }

  template <class T>
  void write(const T& value) {
    if constexpr (std::is_enum_v<T>) {
      writer_.number(static_cast<std::underlying_type_t<T>>(value));
    } else if constexpr (std::is_same_v<T, bool>) {
      writer_.number(static_cast<uint8_t>(value));
    } else if constexpr (std::is_arithmetic_v<T>) {
      writer_.number(value);
    } else if constexpr (HasFields<T>) {
      const_cast<T&>(value).fields(*this);
    } else {
      write_container(value);
    }
  }

 private:
  void write_container(const std::string& value) { writer_.text(value); }
  template <class Tag>
  void write_container(const Bytes32<Tag>& value) {
    writer_.raw(value.bytes.data(), 32);
  }
  template <size_t N>
  void write_container(const std::array<uint8_t, N>& value) {
    writer_.raw(value.data(), N);
  }
  template <class T>
  void write_container(const std::optional<T>& value) {
    write(value.has_value());
    if (value) write(*value);
  }
  template <class T>
  void write_container(const std::vector<T>& value) {
    writer_.number(static_cast<uint32_t>(value.size()));
    for (const T& item : value) write(item);
  }
  template <class T>
  void write_container(const std::deque<T>& value) {
    writer_.number(static_cast<uint32_t>(value.size()));
    for (const T& item : value) write(item);
  }
  template <class T>
  void write_container(const std::set<T>& value) {
    writer_.number(static_cast<uint32_t>(value.size()));
    for (const T& item : value) write(item);
  }
  template <class K, class V>
  void write_container(const std::map<K, V>& value) {
    writer_.number(static_cast<uint32_t>(value.size()));
    for (const auto& [key, item] : value) {
      write(key);
      write(item);
    }
  }
  ByteWriter writer_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : reader_(bytes) {}
  template <class T>
  Decoder& operator()(const char*, T& value) {
    read(value);
    return *this;
  }
  bool done() const { return reader_.done(); }

  template <class T>
  void read(T& value) {
    if constexpr (std::is_enum_v<T>) {
      value = static_cast<T>(reader_.number<std::underlying_type_t<T>>());
    } else if constexpr (std::is_same_v<T, bool>) {
      const uint8_t raw = reader_.number<uint8_t>();
      if (raw > 1) reader_.fail();
      value = raw == 1;
    } else if constexpr (std::is_arithmetic_v<T>) {
      value = reader_.number<T>();
    } else if constexpr (HasFields<T>) {
      value.fields(*this);
    } else {
      read_container(value);
    }
  }

 private:
  void read_container(std::string& value) { value = std::string(reader_.text()); }
  template <class Tag>
  void read_container(Bytes32<Tag>& value) {
    if (!Bytes32<Tag>::from(reader_.raw(32), &value)) reader_.fail();
  }
  template <size_t N>
  void read_container(std::array<uint8_t, N>& value) {
    const std::string_view raw = reader_.raw(N);
    if (raw.size() == N) std::memcpy(value.data(), raw.data(), N);
  }
  template <class T>
  void read_container(std::optional<T>& value) {
    bool present = false;
    read(present);
    value.reset();
    if (present) read(value.emplace());
  }
  template <class T>
  void read_container(std::vector<T>& value) {
    read_sequence(value);
  }
  template <class T>
  void read_container(std::deque<T>& value) {
    read_sequence(value);
  }
  template <class C>
  void read_sequence(C& value) {
    value.clear();
    const uint32_t count = reader_.number<uint32_t>();
    if (count > reader_.remaining()) return reader_.fail();  // every item has at least one byte
    for (uint32_t i = 0; i < count && reader_.ok(); ++i) {
      typename C::value_type item{};
      read(item);
      value.push_back(std::move(item));
    }
  }
  template <class T>
  void read_container(std::set<T>& value) {
    value.clear();
    const uint32_t count = reader_.number<uint32_t>();
    if (count > reader_.remaining()) return reader_.fail();
    for (uint32_t i = 0; i < count && reader_.ok(); ++i) {
      T item{};
      read(item);
      if (!value.empty() && !(*value.rbegin() < item)) return reader_.fail();  // as for the keys of a map
      value.emplace_hint(value.end(), std::move(item));
    }
  }
  template <class K, class V>
  void read_container(std::map<K, V>& value) {
    value.clear();
    const uint32_t count = reader_.number<uint32_t>();
    if (count > reader_.remaining()) return reader_.fail();
    for (uint32_t i = 0; i < count && reader_.ok(); ++i) {
      K key{};
      V item{};
      read(key);
      // One value has one encoding (what is signed and hashed depends on it): keys ascend, none twice.
      if (!value.empty() && !(value.rbegin()->first < key)) return reader_.fail();
      read(item);
      value.emplace_hint(value.end(), std::move(key), std::move(item));
    }
  }
  ByteReader reader_;
};

// Writes a JSON object; 32-byte ids and signatures as hexadecimal, enums as numbers, NaN and infinities as null.
class JsonWriter {
 public:
  template <class T>
  JsonWriter& operator()(const char* name, const T& value) {
    out_ += first_ ? "" : ",";
    first_ = false;
    out_ += fmt::format("\"{}\":", name);
    write(value);
    return *this;
  }
  std::string take() { return std::move(out_); }

  template <class T>
  void write(const T& value) {
    if constexpr (std::is_enum_v<T>) {
      out_ += fmt::format("{}", static_cast<int64_t>(value));
    } else if constexpr (std::is_same_v<T, bool>) {
      out_ += value ? "true" : "false";
    } else if constexpr (std::is_floating_point_v<T>) {
      out_ += std::isfinite(value) ? fmt::format("{}", value) : "null";
    } else if constexpr (std::is_arithmetic_v<T>) {
      out_ += fmt::format("{}", +value);
    } else if constexpr (HasFields<T>) {
      JsonWriter inner;
      const_cast<T&>(value).fields(inner);
      out_ += '{';
      out_ += inner.take();
      out_ += '}';
    } else {
      write_container(value);
    }
  }

 private:
  void write_container(const std::string& value);
  template <class Tag>
  void write_container(const Bytes32<Tag>& value) {
    out_ += '"' + value.hex() + '"';
  }
  template <size_t N>
  void write_container(const std::array<uint8_t, N>& value) {
    out_ += '"' + to_hex({reinterpret_cast<const char*>(value.data()), N}) + '"';
  }
  template <class T>
  void write_container(const std::optional<T>& value) {
    if (value) {
      write(*value);
    } else {
      out_ += "null";
    }
  }
  template <class T>
  void write_container(const std::vector<T>& value) {
    write_sequence(value);
  }
  template <class T>
  void write_container(const std::deque<T>& value) {
    write_sequence(value);
  }
  template <class T>
  void write_container(const std::set<T>& value) {
    write_sequence(value);
  }
  template <class C>
  void write_sequence(const C& value) {
    out_ += '[';
    bool first = true;
    for (const auto& item : value) {
      if (!first) out_ += ',';
      first = false;
      write<typename C::value_type>(item);
    }
    out_ += ']';
  }
  template <class K, class V>
  void write_container(const std::map<K, V>& value) {
    out_ += '[';
    bool first = true;
    for (const auto& [key, item] : value) {
      if (!first) out_ += ',';
      first = false;
      out_ += '[';
      write(key);
      out_ += ',';
      write(item);
      out_ += ']';
    }
    out_ += ']';
  }
  std::string out_;
  bool first_ = true;
};

template <class T>
std::string encode(const T& value) {
  Encoder encoder;
  encoder.write(value);
  return encoder.take();
}
// False unless `bytes` is exactly one T.
template <class T>
bool decode(std::string_view bytes, T* value) {
  Decoder decoder(bytes);
  decoder.read(*value);
  return decoder.done();
}
template <class T>
std::string to_json(const T& value) {
  JsonWriter writer;
  writer.write(value);
  return writer.take();
}

}  // namespace tessera
