#include "tessera/base/stream_crypto.h"

#include <sodium.h>

#include <cstring>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"

namespace tessera {
namespace {

void start_sodium() {
  static const int result = sodium_init();
  TESSERA_CHECK(result >= 0);
}

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

KeyExchange::KeyExchange() {
  start_sodium();
  static_assert(crypto_scalarmult_BYTES == kPublicBytes);
  static_assert(crypto_scalarmult_SCALARBYTES == kPublicBytes);
  randombytes_buf(secret_.data(), secret_.size());
  TESSERA_CHECK(crypto_scalarmult_base(public_.data(), secret_.data()) == 0);
}

KeyExchange::~KeyExchange() { sodium_memzero(secret_.data(), secret_.size()); }

std::string_view KeyExchange::public_key() const {
  return {reinterpret_cast<const char*>(public_.data()), public_.size()};
}

std::optional<Digest> KeyExchange::agree(std::string_view other_public_key,
                                         std::string_view context) const {
  if (other_public_key.size() != kPublicBytes) return std::nullopt;
  std::array<uint8_t, crypto_scalarmult_BYTES> shared;
  if (crypto_scalarmult(shared.data(), secret_.data(), bytes_of(other_public_key)) != 0) {
    return std::nullopt;
  }
  Digest key;
  crypto_generichash(key.bytes.data(), key.bytes.size(), bytes_of(context), context.size(),
                     shared.data(), shared.size());
  sodium_memzero(shared.data(), shared.size());
  return key;
}

struct MessageTagger::State {
  crypto_onetimeauth_state poly1305;
};

MessageTagger::MessageTagger(const Digest& key)
    : key_(key.bytes), state_(std::make_unique<State>()) {
  start_sodium();
  static_assert(crypto_onetimeauth_BYTES == kTagBytes);
  static_assert(crypto_stream_chacha20_KEYBYTES == sizeof(key_));
  static_assert(crypto_stream_chacha20_NONCEBYTES == sizeof(message_));
}

MessageTagger::~MessageTagger() {
  sodium_memzero(key_.data(), key_.size());
  sodium_memzero(state_.get(), sizeof(State));
}

void MessageTagger::begin() {
  ++message_;
  std::array<uint8_t, sizeof(message_)> nonce;
  std::memcpy(nonce.data(), &message_, sizeof(message_));
  std::array<uint8_t, crypto_onetimeauth_KEYBYTES> once;
  crypto_stream_chacha20(once.data(), once.size(), nonce.data(), key_.data());
  crypto_onetimeauth_init(&state_->poly1305, once.data());
  sodium_memzero(once.data(), once.size());
}

void MessageTagger::add(std::string_view piece) {
  crypto_onetimeauth_update(&state_->poly1305, bytes_of(piece),
                            piece.size());
}

MessageTagger::Tag MessageTagger::finish() {
  Tag tag;
  crypto_onetimeauth_final(&state_->poly1305, tag.data());
  return tag;
}

bool MessageTagger::check(const Tag& tag) {
  const Tag expected = finish();
  return sodium_memcmp(expected.data(), tag.data(), tag.size()) == 0;
}

}  // namespace tessera
