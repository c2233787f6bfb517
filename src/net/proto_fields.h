// Core ids as protobuf bytes.
#pragma once

#include <string>

#include "tessera/base/ids.h"

namespace tessera::net {

template <class Tag>
std::string bytes_of(const Bytes32<Tag>& value) {
  return std::string(value.view());
}
// All zeros mean none, which travels as no bytes.
template <class Tag>
std::string bytes_or_empty(const Bytes32<Tag>& value) {
  return value.is_zero() ? std::string() : std::string(value.view());
}

}  // namespace tessera::net
