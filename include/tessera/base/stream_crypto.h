// Authentication of the messages of one stream: two sides agree on a secret that nobody else knows
// (X25519), and each message carries a tag under a key made of it and of the message's number. It
// costs a fraction of a signature a message, but proves nothing to third parties: what must outlive
// the stream needs a signature of its own.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "tessera/base/ids.h"

namespace tessera {

// One side's ephemeral X25519 key (RFC 7748). Not thread-safe, used once.
class KeyExchange {
 public:
  static constexpr size_t kPublicBytes = 32;
  KeyExchange();
  ~KeyExchange();
  KeyExchange(const KeyExchange&) = delete;
  KeyExchange& operator=(const KeyExchange&) = delete;
  std::string_view public_key() const;
  // A key that only the holders of both secrets can make, different for each `context`: everything
  // that both sides must agree on. Nothing for another size and for the few public keys that leave
  // no secret.
  std::optional<Digest> agree(std::string_view other_public_key, std::string_view context) const;

 private:
  std::array<uint8_t, kPublicBytes> secret_;
  std::array<uint8_t, kPublicBytes> public_;
};

// Tags of the messages that one side sends, in order. The tag of message n is Poly1305 (RFC 8439)
// with the one-time key that ChaCha20 under the stream's key gives for nonce n: a message that was
// changed, left out, repeated, moved or made by another does not fit. Poly1305 because it takes a
// quarter of the time of keyed BLAKE2b. Not thread-safe.
class MessageTagger {
 public:
  static constexpr size_t kTagBytes = 16;
  using Tag = std::array<uint8_t, kTagBytes>;

  explicit MessageTagger(const Digest& key);
  ~MessageTagger();
  MessageTagger(const MessageTagger&) = delete;
  MessageTagger& operator=(const MessageTagger&) = delete;

  // begin(), the message in any number of pieces, then finish() or check().
  void begin();
  void add(std::string_view piece);
  Tag finish();
  bool check(const Tag& tag);

 private:
  struct State;
  std::array<uint8_t, 32> key_;
  uint64_t message_ = 0;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
