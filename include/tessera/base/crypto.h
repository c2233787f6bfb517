// Hashes, keys and signatures (libsodium). Thread-safe; every function may be called from anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera {

// BLAKE2b-256 (RFC 7693, unkeyed).
Digest digest_of(std::string_view bytes);

// The same over pieces.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void update(std::string_view bytes);
  void update(const void* data, size_t size) {
    update({static_cast<const char*>(data), size});
  }
  Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// SHA-256 (FIPS 180-4), where others are to check a hash with their own tools.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::string_view bytes);
  std::string finish();  // 32 bytes

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Ed25519 (RFC 8032). The secret key never leaves the object but into its file.
class KeyPair {
 public:
  static KeyPair generate();
  // Deterministic, for tests and simulation.
  static KeyPair from_seed(std::string_view seed32);
  // Reads `path`, or makes a key there with file mode 0600. Refuses a file others can read.
  static StatusOr<KeyPair> load_or_create(const std::string& path);

  const NodeId& id() const { return id_; }
  Signature sign(std::string_view message) const;

 private:
  KeyPair() = default;
  NodeId id_;
  std::array<uint8_t, 64> secret_{};
};

bool verify(const NodeId& signer, std::string_view message, const Signature& signature);

// 32 secret bytes from the file, or new ones put there with file mode 0600. Refuses a file others can read.
StatusOr<std::string> load_or_create_secret(const std::string& path);

// Encrypts or decrypts in place: XChaCha20 under `key` with the message number `nonce`. A key must
// not be used for two messages with one number. Says nothing about who wrote the bytes: names and
// hashes do that.
void apply_keystream(const Digest& key, uint64_t nonce, std::string* bytes);

// Cryptographically random bytes from the system.
std::string random_bytes(size_t size);
uint64_t random_u64();

}  // namespace tessera
