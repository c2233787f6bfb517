// Strong ids. A node is its Ed25519 public key; everything a run counts is a number of its own type.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "tessera/base/bytes.h"

namespace tessera {

// 32 opaque bytes with an order; Tag keeps keys and hashes apart.
template <class Tag>
struct Bytes32 {
  std::array<uint8_t, 32> bytes{};

  auto operator<=>(const Bytes32&) const = default;
  bool is_zero() const { return *this == Bytes32{}; }
  std::string_view view() const { return {reinterpret_cast<const char*>(bytes.data()), 32}; }
  std::string hex() const { return to_hex(view()); }
  // The first 8 hexadecimal digits: for people, never for a decision.
  std::string brief() const { return to_hex(view().substr(0, 4)); }
  // False if `data` has not exactly 32 bytes.
  static bool from(std::string_view data, Bytes32* out) {
    if (data.size() != 32) return false;
    std::memcpy(out->bytes.data(), data.data(), 32);
    return true;
  }
};

using NodeId = Bytes32<struct NodeIdTag>;  // Ed25519 public key
using Digest = Bytes32<struct DigestTag>;  // BLAKE2b-256
using Signature = std::array<uint8_t, 64>;

using StageIndex = uint32_t;
// A miner's number within a run, given at its first registration, never reused.
using MinerIndex = uint32_t;
inline constexpr MinerIndex kNoMiner = UINT32_MAX;
using MicrobatchId = uint64_t;
using Epoch = uint64_t;  // of a stage: from merge to merge

}  // namespace tessera
