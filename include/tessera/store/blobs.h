// Content-addressed blobs on disk: DIR/ab/cdef... named by BLAKE2b-256 of the content. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::store {

inline constexpr size_t kMaxBlobBytes = 1u << 20;

class BlobStore {
 public:
  // `limit_bytes` bounds the folder; a put over it is RESOURCE_EXHAUSTED. Makes the folder and counts what is there.
  static StatusOr<std::unique_ptr<BlobStore>> open(const std::string& folder, uint64_t limit_bytes);
  // At most kMaxBlobBytes. Storing what is there already is no error and costs no write.
  StatusOr<Digest> put(std::string_view content);
  // NOT_FOUND, or DATA_LOSS (and the file is removed) if the content no longer has its hash.
  StatusOr<std::string> get(const Digest& digest) const;
  bool has(const Digest& digest) const;
  Status remove(const Digest& digest);
  std::vector<Digest> list() const;
  uint64_t bytes() const { return bytes_.load(); }

 private:
  BlobStore(std::string folder, uint64_t limit_bytes) : folder_(std::move(folder)), limit_bytes_(limit_bytes) {}
  std::string path_of(const Digest& digest) const;
  const std::string folder_;
  const uint64_t limit_bytes_;
  mutable std::atomic<uint64_t> bytes_{0};
};

}  // namespace tessera::store
