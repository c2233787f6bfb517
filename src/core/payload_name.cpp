#include "tessera/core/payload_name.h"

#include <cstring>

#include "tessera/base/crypto.h"
#include "tessera/core/object.h"

namespace tessera::core {

std::string stored_form(const BoundaryPayload& payload) {
  std::string stored(sizeof(payload.exponent), '\0');
  std::memcpy(stored.data(), &payload.exponent, sizeof(payload.exponent));
  return stored += payload.bytes;
}

StatusOr<BoundaryPayload> payload_from(std::string stored) {
  BoundaryPayload payload;
  if (stored.size() <= sizeof(payload.exponent)) return data_loss("a payload of {} bytes", stored.size());
  std::memcpy(&payload.exponent, stored.data(), sizeof(payload.exponent));
  payload.bytes = stored.substr(sizeof(payload.exponent));
  return payload;
}

bool is_one_blob(size_t stored_bytes) { return stored_bytes <= kMaxChunkBytes; }

Digest name_of(const BoundaryPayload& payload) {
  if (payload.bytes.empty()) return {};
  const std::string stored = stored_form(payload);
  if (is_one_blob(stored.size())) return digest_of(stored);
  const StatusOr<ObjectManifest> manifest = make_manifest(stored);
  TESSERA_CHECK(manifest.ok());  // a frame is smaller than the largest object
  return manifest->digest();
}

}  // namespace tessera::core
