// Content-addressed blobs on disk: DIR/ab/cdef... named by BLAKE2b-256 of the content
// (docs/formats/checkpoint-files.md). Thread-safe. One BlobStore owns a folder: two would each
// count only their own puts against the limit (their contents would stay right).
//
// A put writes a temporary file and renames it, without fsync: a flush for each of thousands of
// blobs would make the disk the bottleneck, and none is needed for truth, because get() checks the
// hash of what it reads. A power failure can cost the newest blobs; they read as NOT_FOUND or
// DATA_LOSS, never as wrong content, and can be put again. What must outlive a power failure is in
// checkpoint folders, which are flushed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::store {

inline constexpr size_t kMaxBlobBytes = 1u << 20;

class BlobStore {
 public:
  // `limit_bytes` bounds the folder; a put over it is RESOURCE_EXHAUSTED. Makes the folder, removes
  // temporary files that a crash left, and counts what is there.
  static StatusOr<std::unique_ptr<BlobStore>> open(const std::string& folder, uint64_t limit_bytes);
  // At most kMaxBlobBytes. Storing what is there already is no error and costs no write; a damaged
  // copy is replaced. `is_new`, if given, says whether the content was written.
  StatusOr<Digest> put(std::string_view content, bool* is_new = nullptr);
  // The same for a content whose digest was just made.
  Status put(const Digest& digest, std::string_view content, bool* is_new = nullptr);
  // NOT_FOUND, or DATA_LOSS (and the file is removed) if the content no longer has its hash.
  StatusOr<std::string> get(const Digest& digest) const;
  // Asking counts as a use: sweep() leaves the blob alone for its minimum age from now on.
  bool has(const Digest& digest) const;
  // Removing what is not there is no error.
  Status remove(const Digest& digest);
  // Removes every blob that is not in `keep` and was neither put nor asked for during the last `min_age`: what is on its
  // way and not named anywhere yet is younger. Returns the bytes removed.
  // Of the others those used since `recent.since_unix_ms` stay too, the newest first, up to `recent.bytes`.
  struct Recent {
    int64_t since_unix_ms = 0;
    uint64_t bytes = 0;
  };
  StatusOr<uint64_t> sweep(const std::set<Digest>& keep, std::chrono::seconds min_age, Recent recent = {0, 0});
  // In the order of the digests.
  std::vector<Digest> list() const;
  // Of the contents stored.
  uint64_t bytes() const { return bytes_.load(); }

 private:
  static constexpr size_t kLocks = 64;

  BlobStore(std::string folder, uint64_t limit_bytes)
      : folder_(std::move(folder)), limit_bytes_(limit_bytes) {}
  Status count_existing();
  Status write(const Digest& digest, std::string_view content);
  Status reserve(uint64_t bytes);
  Status remove_locked(const std::string& path) const;
  std::string path_of(const Digest& digest) const;
  std::mutex& lock_of(const Digest& digest) const { return locks_[digest.bytes[0] % kLocks]; }

  const std::string folder_;
  const uint64_t limit_bytes_;
  mutable std::atomic<uint64_t> bytes_{0};
  // Changes of one digest's file and of its share of bytes_ happen under its lock.
  mutable std::array<std::mutex, kLocks> locks_;
};

}  // namespace tessera::store
