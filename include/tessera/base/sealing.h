// Encryption of what is kept and published later: XChaCha20-Poly1305 (libsodium) under keys made from one secret, a key of
// its own for everything that is published alone. Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera {

class SealKey {
 public:
  static SealKey from_secret(std::string_view secret32);
  // Reads `path`, or makes a secret there with file mode 0600. Refuses a file others can read.
  static StatusOr<SealKey> load_or_create(const std::string& path);
  // NOT_FOUND instead of making one.
  static StatusOr<SealKey> load(const std::string& path);

  // BLAKE2b-256 of `context`, keyed by the secret: can be published without telling anything of other contexts.
  Digest derive(std::string_view context) const;

 private:
  SealKey() = default;
  std::array<uint8_t, 32> secret_{};
};

// nonce (24 random bytes) | ciphertext | tag (16). `label` is authenticated, not contained.
std::string seal(const Digest& key, std::string_view label, std::string_view plain);
// Nothing if it was sealed with another key or label, or was changed.
std::optional<std::string> open_sealed(const Digest& key, std::string_view label, std::string_view sealed);

}  // namespace tessera
