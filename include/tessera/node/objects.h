// Large objects (core/object.h) over a blob link, and the raw bytes of a stage's values. Every byte that comes back was
// checked against the name it was asked for.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/object.h"
#include "tessera/core/stage_state.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Whether a store is asked first which chunks it has. Chunks that nobody can have stored yet are hashed once and sent.
enum class Novelty : uint8_t { kMayBeThere, kNew };

// Stores an object chunk by chunk: the whole of it never lies in memory. Every chunk but the last has `chunk_bytes`.
class ObjectWriter {
 public:
  ObjectWriter(ports::BlobLink& blobs, uint32_t chunk_bytes, Novelty novelty = Novelty::kMayBeThere)
      : blobs_(blobs), novelty_(novelty) {
    manifest_.chunk_bytes = chunk_bytes;
  }
  Status add(std::string chunk);
  // Cuts bytes into chunks, across calls. Not to be mixed with add().
  Status append(std::string_view bytes);
  // Stores the manifest and returns the object's name.
  StatusOr<Digest> finish();

 private:
  Status flush();

  ports::BlobLink& blobs_;
  const Novelty novelty_;
  core::ObjectManifest manifest_;
  std::string partial_;  // what append() has of the next chunk
  std::vector<std::string> batch_;
  uint64_t batch_bytes_ = 0;
};

// Stores every chunk and the manifest; returns the object's name.
StatusOr<Digest> put_object(ports::BlobLink& blobs, std::string_view content,
                            uint32_t chunk_bytes = core::kMaxChunkBytes, Novelty novelty = Novelty::kMayBeThere);
StatusOr<core::ObjectManifest> get_manifest(ports::BlobLink& blobs, const Digest& object);
// Chunks [first, first + count) one after the other. OUT_OF_RANGE past the end.
StatusOr<std::string> get_chunks(ports::BlobLink& blobs, const core::ObjectManifest& manifest, uint64_t first,
                                 uint64_t count);
// The whole object. Refused, before anything is fetched, if it is not `expected_bytes` long (0: any, up to limit_bytes).
StatusOr<std::string> get_object(ports::BlobLink& blobs, const Digest& object, uint64_t expected_bytes,
                                 uint64_t limit_bytes = uint64_t{1} << 36);

// Reads the whole object and keeps nothing: an error if any of it is missing or broken, or if it is not `expected_bytes` long.
Status check_object(ports::BlobLink& blobs, const Digest& object, uint64_t expected_bytes);

std::string_view bytes_of(const std::vector<float>& values);
std::vector<float> values_of(std::string_view bytes);  // size is a multiple of 4

// base, then outer momentum: what a stage's replicas share. The object's name identifies the state.
std::string encode_stage_state(const std::vector<float>& base, const std::vector<float>& momentum);
StatusOr<core::ObjectManifest> list_stage_state(const std::vector<float>& base, const std::vector<float>& momentum);
StatusOr<Digest> name_stage_state(const std::vector<float>& base, const std::vector<float>& momentum);

// "TSLS", version, sizes, then masters, moments, gradient as raw fp32.
std::string encode_local_state(const core::LocalState& state);
StatusOr<core::LocalState> decode_local_state(std::string_view bytes);
// The object of those bytes, of which no copy is made as a whole.
StatusOr<Digest> put_local_state(ports::BlobLink& blobs, const core::LocalState& state, Novelty novelty = Novelty::kMayBeThere);
// A miner's local state of a stage of `values` values: refused before its chunks are fetched if it is longer than that can be.
StatusOr<core::LocalState> get_local_state(ports::BlobLink& blobs, const Digest& object, uint64_t values);

}  // namespace tessera::node
