#include "tessera/core/object.h"

#include "tessera/base/bytes.h"
#include "tessera/base/crypto.h"

namespace tessera::core {
namespace {

constexpr std::string_view kMagic = "TSO1";
constexpr size_t kDigestBytes = 32;

uint64_t chunks_for(uint64_t total_bytes, uint32_t chunk_bytes) {
  return total_bytes / chunk_bytes + (total_bytes % chunk_bytes != 0 ? 1 : 0);
}

}  // namespace

std::string ObjectManifest::encode() const {
  ByteWriter writer;
  writer.raw(kMagic.data(), kMagic.size());
  writer.number(total_bytes);
  writer.number(chunk_bytes);
  writer.number(static_cast<uint32_t>(chunks.size()));
  for (const Digest& chunk : chunks) writer.raw(chunk.bytes.data(), chunk.bytes.size());
  return writer.take();
}

Digest ObjectManifest::digest() const { return digest_of(encode()); }

StatusOr<ObjectManifest> ObjectManifest::decode(std::string_view bytes) {
  ByteReader reader(bytes);
  const std::string_view magic = reader.raw(kMagic.size());
  ObjectManifest manifest;
  manifest.total_bytes = reader.number<uint64_t>();
  manifest.chunk_bytes = reader.number<uint32_t>();
  const uint32_t count = reader.number<uint32_t>();
  if (!reader.ok()) {
    return invalid_argument("object manifest: {} bytes are too few for its header", bytes.size());
  }
  if (magic != kMagic) {
    return invalid_argument(
        "object manifest: starts with {}, not with \"{}\": it is something else", to_hex(magic),
        kMagic);
  }
  if (manifest.chunk_bytes == 0 || manifest.chunk_bytes > kMaxChunkBytes) {
    return invalid_argument("object manifest: chunks of {} bytes; 1 to {} are allowed",
                            manifest.chunk_bytes, kMaxChunkBytes);
  }
  if (count > kMaxChunks) {
    return invalid_argument("object manifest: {} chunks; at most {} are allowed", count,
                            kMaxChunks);
  }
  const uint64_t needed = chunks_for(manifest.total_bytes, manifest.chunk_bytes);
  if (count != needed) {
    return invalid_argument("object manifest: {} chunks, but {} bytes in chunks of {} are {}",
                            count, manifest.total_bytes, manifest.chunk_bytes, needed);
  }
  if (reader.remaining() != count * kDigestBytes) {
    return invalid_argument("object manifest: {} bytes follow the header, {} chunks have {}",
                            reader.remaining(), count, count * kDigestBytes);
  }
  manifest.chunks.resize(count);
  for (Digest& chunk : manifest.chunks) {
    TESSERA_CHECK(Digest::from(reader.raw(kDigestBytes), &chunk));
  }
  return manifest;
}

StatusOr<ObjectManifest> make_manifest(std::string_view content, uint32_t chunk_bytes) {
  if (chunk_bytes == 0 || chunk_bytes > kMaxChunkBytes) {
    return invalid_argument("chunks of {} bytes were asked for; 1 to {} are allowed", chunk_bytes,
                            kMaxChunkBytes);
  }
  const uint64_t count = chunks_for(content.size(), chunk_bytes);
  if (count > kMaxChunks) {
    return error(absl::StatusCode::kResourceExhausted,
                 "{} bytes are {} chunks of {}, more than the {} of one object; use larger chunks "
                 "(up to {}) or several objects",
                 content.size(), count, chunk_bytes, kMaxChunks, kMaxChunkBytes);
  }
  ObjectManifest manifest;
  manifest.total_bytes = content.size();
  manifest.chunk_bytes = chunk_bytes;
  manifest.chunks.reserve(count);
  for (uint64_t chunk = 0; chunk < count; ++chunk) {
    manifest.chunks.push_back(digest_of(content.substr(chunk * chunk_bytes, chunk_bytes)));
  }
  return manifest;
}

}  // namespace tessera::core
