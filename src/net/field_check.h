// Checks fields of a protobuf message on their way into a core value. The first failure wins and
// names its field
// ("receipts[3].input_hash: 31 bytes, expected 32"); what was copied after it is to be thrown away.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "net/convert.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::net {

class FieldCheck {
 public:
  bool ok() const { return status_.ok(); }
  Status status() const { return status_; }

  template <class Tag>
  void bytes32(const char* field, const std::string& data, Bytes32<Tag>* out) {
    if (!Bytes32<Tag>::from(data, out)) fail(field, "{} bytes, expected 32", data.size());
  }
  // Empty means none, which is all zeros in core.
  template <class Tag>
  void bytes32_or_empty(const char* field, const std::string& data, Bytes32<Tag>* out) {
    if (data.empty()) {
      *out = {};
    } else if (!Bytes32<Tag>::from(data, out)) {
      fail(field, "{} bytes, expected 32 or none", data.size());
    }
  }
  void signature(const char* field, const std::string& data, Signature* out) {
    if (data.size() != out->size())
      return fail(field, "{} bytes, expected {}", data.size(), out->size());
    std::memcpy(out->data(), data.data(), out->size());
  }
  void text(const char* field, const std::string& data, size_t limit, std::string* out) {
    if (data.size() > limit)
      return fail(field, "{} bytes, at most {} are allowed", data.size(), limit);
    *out = data;
  }
  // `last` is the highest value of E; all below it are values too.
  template <class E>
  void enumeration(const char* field, int value, E last, E* out) {
    static_assert(std::is_enum_v<E>);
    if (value < 0 || value > static_cast<int>(last)) {
      return fail(field, "unknown value {}; upgrade this program if the sender is newer", value);
    }
    *out = static_cast<E>(value);
  }
  void number(const char* field, uint32_t value, uint32_t limit, uint32_t* out) {
    if (value > limit) return fail(field, "{}, at most {} is allowed", value, limit);
    *out = value;
  }
  void duration(const char* field, float value, float* out) {
    if (!std::isfinite(value) || value < 0) return fail(field, "{}, expected a duration", value);
    *out = value;
  }
  void finite(const char* field, double value, double* out) {
    if (!std::isfinite(value)) return fail(field, "{}, expected a number", value);
    *out = value;
  }
  bool count(const char* field, int size, size_t limit) {
    if (static_cast<size_t>(size) <= limit) return true;
    fail(field, "{} entries, at most {} are allowed", size, limit);
    return false;
  }
  // `flaw`: what is wrong with it; empty: nothing.
  void require(const char* field, const std::string& flaw) {
    if (!flaw.empty()) fail(field, "{}", flaw);
  }
  void present(const char* field, bool has) {
    if (!has) fail(field, "missing");
  }

  // A nested message, by its from_proto() (net/convert.h).
  template <class Proto, class Core>
  void nested(const char* field, const Proto& in, Core* out) {
    if (!ok()) return;
    if (Status status = from_proto(in, out); !status.ok()) {
      status_ = invalid_argument("{}.{}", field, message_of(status));
    }
  }
  template <class Repeated, class Core>
  void list(const char* field, const Repeated& in, size_t limit, std::vector<Core>* out) {
    if (!ok() || !count(field, in.size(), limit)) return;
    out->clear();
    out->reserve(in.size());
    for (int i = 0; i < in.size(); ++i) {
      if (Status status = from_proto(in[i], &out->emplace_back()); !status.ok()) {
        status_ = invalid_argument("{}[{}].{}", field, i, message_of(status));
        return;
      }
    }
  }

 private:
  template <class... Args>
  void fail(const char* field, fmt::format_string<Args...> format, Args&&... args) {
    if (!status_.ok()) return;
    status_ = invalid_argument("{}: {}", field, fmt::format(format, std::forward<Args>(args)...));
  }
  Status status_;
};

}  // namespace tessera::net
