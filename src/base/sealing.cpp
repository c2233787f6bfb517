#include "tessera/base/sealing.h"

#include <sodium.h>

#include <cstring>

#include "tessera/base/crypto.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

constexpr size_t kNonceBytes = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES;
constexpr size_t kTagBytes = crypto_aead_xchacha20poly1305_ietf_ABYTES;

void start_sodium() {
  static const int result = sodium_init();
  TESSERA_CHECK(result >= 0);
}

const unsigned char* bytes_of(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }
unsigned char* bytes_of(std::string& text) { return reinterpret_cast<unsigned char*>(text.data()); }

}  // namespace

SealKey SealKey::from_secret(std::string_view secret32) {
  start_sodium();
  TESSERA_CHECK(secret32.size() == 32);
  SealKey key;
  std::memcpy(key.secret_.data(), secret32.data(), 32);
  return key;
}

StatusOr<SealKey> SealKey::load_or_create(const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(const std::string secret, load_or_create_secret(path));
  return from_secret(secret);
}

StatusOr<SealKey> SealKey::load(const std::string& path) {
  if (!file_exists(path)) return not_found("{}: there is no such key file", path);
  return load_or_create(path);
}

Digest SealKey::derive(std::string_view context) const {
  Digest key;
  crypto_generichash(key.bytes.data(), key.bytes.size(), bytes_of(context), context.size(), secret_.data(),
                     secret_.size());
  return key;
}

std::string seal(const Digest& key, std::string_view label, std::string_view plain) {
  start_sodium();
  static_assert(crypto_aead_xchacha20poly1305_ietf_KEYBYTES == 32);
  std::string sealed = random_bytes(kNonceBytes);
  sealed.resize(kNonceBytes + plain.size() + kTagBytes);
  unsigned char* out = bytes_of(sealed);
  crypto_aead_xchacha20poly1305_ietf_encrypt(out + kNonceBytes, nullptr, bytes_of(plain), plain.size(),
                                             bytes_of(label), label.size(), nullptr, out, key.bytes.data());
  return sealed;
}

std::optional<std::string> open_sealed(const Digest& key, std::string_view label, std::string_view sealed) {
  start_sodium();
  if (sealed.size() < kNonceBytes + kTagBytes) return std::nullopt;
  std::string plain(sealed.size() - kNonceBytes - kTagBytes, '\0');
  const unsigned char* in = bytes_of(sealed);
  if (crypto_aead_xchacha20poly1305_ietf_decrypt(bytes_of(plain), nullptr, nullptr, in + kNonceBytes,
                                                 sealed.size() - kNonceBytes, bytes_of(label), label.size(), in,
                                                 key.bytes.data()) != 0) {
    return std::nullopt;
  }
  return plain;
}

}  // namespace tessera
