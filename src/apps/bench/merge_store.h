// What the benchmarks of a merge share: a blob store in memory, a link that counts, and a replica's local work.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/codec.h"
#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"
#include "tessera/net/server.h"
#include "tessera/ports/links.h"

namespace tessera::apps {

// Thread-safe.
class MemoryStore final : public net::BlobBackend {
 public:
  Status put(const ports::Caller&, const Digest& name, std::string content) override {
    std::lock_guard lock(mutex_);
    blobs_.emplace(name, std::move(content));
    return ok_status();
  }
  StatusOr<std::string> get(const Digest& digest) override {
    std::lock_guard lock(mutex_);
    const auto found = blobs_.find(digest);
    if (found == blobs_.end()) return not_found("no blob {}", digest.brief());
    return found->second;
  }
  bool has(const Digest& digest) override {
    std::lock_guard lock(mutex_);
    return blobs_.count(digest) > 0;
  }

 private:
  std::mutex mutex_;
  std::map<Digest, std::string> blobs_;
};

// Counts what crosses the network.
class CountingBlobs final : public ports::BlobLink {
 public:
  explicit CountingBlobs(ports::BlobLink& link) : link_(link) {}
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override {
    for (const std::string& blob : blobs) up += blob.size();
    return link_.put(blobs);
  }
  Status put_new(const std::vector<Digest>& names, const std::vector<std::string>& blobs) override {
    for (const std::string& blob : blobs) up += blob.size();
    return link_.put_new(names, blobs);
  }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    auto contents = link_.get(digests);
    if (contents.ok()) {
      for (const std::string& content : *contents) down += content.size();
    }
    return contents;
  }
  StatusOr<std::vector<std::optional<std::string>>> get_present(const std::vector<Digest>& digests, uint32_t wait_ms) override {
    auto contents = link_.get_present(digests, wait_ms);
    if (contents.ok()) {
      for (const auto& content : *contents) down += content ? content->size() : 0;
    }
    return contents;
  }
  std::atomic<uint64_t> up{0}, down{0};

 private:
  ports::BlobLink& link_;
};

inline Codec format_named(const std::string& name) {
  return name == "fp32" ? Codec::kFp32 : name == "bf16" ? Codec::kBf16 : name == "int4" ? Codec::kInt4 : Codec::kInt8;
}

// What a participant's weights became from a base of zeros.
inline std::vector<float> snapshot_of(uint64_t values, uint32_t participant) {
  std::vector<float> snapshot(values);
  uint64_t state = mix64(participant + 1);
  for (float& value : snapshot) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value = -static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-41f;
  }
  return snapshot;
}

// The command line's part that both have.
struct MergeBenchOptions {
  uint64_t mebibytes = 1024;
  uint32_t participants = 4;
  uint32_t block_values = 65536;
  std::string format = "int8";
  std::string json;
};

}  // namespace tessera::apps
