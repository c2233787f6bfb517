#include "tessera/base/crypto.h"

#include <sodium.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "tessera/base/files.h"

namespace tessera {
namespace {

void start_sodium() {
  static const int result = sodium_init();
  TESSERA_CHECK(result >= 0);
}

}  // namespace

Digest digest_of(std::string_view bytes) {
  start_sodium();
  Digest digest;
  crypto_generichash(digest.bytes.data(), digest.bytes.size(),
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr, 0);
  return digest;
}

struct Hasher::State {
  crypto_generichash_state hash;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  start_sodium();
  crypto_generichash_init(&state_->hash, nullptr, 0, 32);
}
Hasher::~Hasher() = default;

void Hasher::update(std::string_view bytes) {
  crypto_generichash_update(&state_->hash, reinterpret_cast<const unsigned char*>(bytes.data()),
                            bytes.size());
}

Digest Hasher::finish() {
  Digest digest;
  crypto_generichash_final(&state_->hash, digest.bytes.data(), digest.bytes.size());
  return digest;
}

struct Sha256::State {
  crypto_hash_sha256_state hash;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  start_sodium();
  crypto_hash_sha256_init(&state_->hash);
}
Sha256::~Sha256() = default;

void Sha256::update(std::string_view bytes) {
  crypto_hash_sha256_update(&state_->hash, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
}

std::string Sha256::finish() {
  std::string digest(crypto_hash_sha256_BYTES, '\0');
  crypto_hash_sha256_final(&state_->hash, reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

KeyPair KeyPair::generate() {
  start_sodium();
  KeyPair pair;
  crypto_sign_keypair(pair.id_.bytes.data(), pair.secret_.data());
  return pair;
}

KeyPair KeyPair::from_seed(std::string_view seed32) {
  start_sodium();
  TESSERA_CHECK(seed32.size() == 32);
  KeyPair pair;
  crypto_sign_seed_keypair(pair.id_.bytes.data(), pair.secret_.data(),
                           reinterpret_cast<const unsigned char*>(seed32.data()));
  return pair;
}

StatusOr<std::string> load_or_create_secret(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    // Only a missing file may be made: a disk error must not replace an identity by a new one.
    if (errno != ENOENT) {
      return failed_precondition("{}: can't read this key file: {}", path, std::strerror(errno));
    }
    const std::string secret = random_bytes(32);
    TESSERA_RETURN_IF_ERROR(annotate(write_file_atomic(path, to_hex(secret) + "\n", 0600), "new key"));
    return secret;
  }
  if ((info.st_mode & 077) != 0) {
    return failed_precondition("{}: others can read this secret key; run: chmod 600 {}", path, path);
  }
  TESSERA_ASSIGN_OR_RETURN(std::string text, read_file(path, 4096));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  std::optional<std::string> secret = from_hex(text);
  if (!secret || secret->size() != 32) {
    return data_loss("{}: not a key file (64 hexadecimal digits); move it away to make a new identity",
                     path);
  }
  return *std::move(secret);
}

StatusOr<KeyPair> KeyPair::load_or_create(const std::string& path) {
  start_sodium();
  TESSERA_ASSIGN_OR_RETURN(const std::string seed, load_or_create_secret(path));
  return from_seed(seed);
}

Signature KeyPair::sign(std::string_view message) const {
  Signature signature{};
  crypto_sign_detached(signature.data(), nullptr,
                       reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                       secret_.data());
  return signature;
}

bool verify(const NodeId& signer, std::string_view message, const Signature& signature) {
  start_sodium();
  return crypto_sign_verify_detached(signature.data(),
                                     reinterpret_cast<const unsigned char*>(message.data()),
                                     message.size(), signer.bytes.data()) == 0;
}

void apply_keystream(const Digest& key, uint64_t nonce, std::string* bytes) {
  start_sodium();
  unsigned char numbered[crypto_stream_xchacha20_NONCEBYTES] = {};
  std::memcpy(numbered, &nonce, sizeof(nonce));
  auto* data = reinterpret_cast<unsigned char*>(bytes->data());
  crypto_stream_xchacha20_xor(data, data, bytes->size(), numbered, key.bytes.data());
}

std::string random_bytes(size_t size) {
  start_sodium();
  std::string bytes(size, '\0');
  randombytes_buf(bytes.data(), size);
  return bytes;
}

uint64_t random_u64() {
  start_sodium();
  uint64_t value = 0;
  randombytes_buf(&value, sizeof(value));
  return value;
}

}  // namespace tessera
