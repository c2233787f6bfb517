// A large object: a list of blobs (chunks) and a manifest that names them. The manifest's digest is the object's name, so
// one digest authenticates every byte, any range can be fetched alone, and an interrupted transfer goes on where it was.
// Manifest bytes: "TSO1", u64 total bytes, u32 chunk bytes, u32 chunk count, 32 bytes a chunk. Every chunk but the last
// has exactly `chunk_bytes`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::core {

inline constexpr uint32_t kMaxChunkBytes = 1u << 20;
inline constexpr uint32_t kMaxChunks = 30000;  // the manifest is a blob too, so it must fit into 1 MiB

struct ObjectManifest {
  uint64_t total_bytes = 0;
  uint32_t chunk_bytes = kMaxChunkBytes;
  std::vector<Digest> chunks;

  std::string encode() const;
  Digest digest() const;
  // Every length checked.
  static StatusOr<ObjectManifest> decode(std::string_view bytes);
};

// Chunks `content` and names every piece; `chunk(i)` is content.substr(i * chunk_bytes, chunk_bytes).
// RESOURCE_EXHAUSTED above kMaxChunks.
StatusOr<ObjectManifest> make_manifest(std::string_view content, uint32_t chunk_bytes = kMaxChunkBytes);

}  // namespace tessera::core
