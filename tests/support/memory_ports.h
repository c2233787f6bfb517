// What node code keeps elsewhere, in memory: journal, blobs, checkpoints, tokens.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "tessera/base/crypto.h"
#include "tessera/core/orchestrator.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/journal.h"
#include "tessera/ports/links.h"
#include "tessera/ports/token_source.h"

namespace tessera::test {

// Outlives the orchestrator node that writes it, as a disk would. Whatever is appended is also
// stepped into a state machine of its own, so that a test can wait for what the run has come to.
// Thread-safe.
class MemoryJournal final : public ports::Journal {
 public:
  Status append(std::vector<ports::JournalRecord>* records) override;
  Status replay(uint64_t after,
                const std::function<Status(const ports::JournalRecord&)>& visit) override;
  StatusOr<std::optional<ports::JournalRecord>> newest(std::string_view kind,
                                                       uint64_t through) override;
  uint64_t last_sequence() const override;
  Status verify_chain() override { return ok_status(); }

  using Condition = std::function<bool(const core::OrchestratorState&)>;
  // False if it does not come true in time.
  bool wait(const Condition& condition, std::chrono::seconds limit = std::chrono::seconds(200));
  core::OrchestratorState state() const;
  std::vector<core::Event> events() const;
  void write_garbage();
  // Cuts a record's body in half.
  void damage(uint64_t sequence);
  // Where the last replay began.
  uint64_t replayed_after() const;
  // Every append from now on fails.
  void fail() {
    std::lock_guard lock(mutex_);
    failing_ = true;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ports::JournalRecord> records_;
  core::Orchestrator mirror_;
  uint64_t replayed_after_ = 0;
  bool failing_ = false;
};

// Thread-safe.
class MemoryBlobs final : public ports::BlobLink {
 public:
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override;
  void forget(const Digest& digest);
  size_t size() const;

 private:
  mutable std::mutex mutex_;
  std::map<Digest, std::string> blobs_;
};

// A link whose puts are acknowledged and lost once `loses` is set.
class LosingBlobs final : public ports::BlobLink {
 public:
  explicit LosingBlobs(ports::BlobLink& blobs) : blobs_(blobs) {}
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    return blobs_.get(digests);
  }

  std::atomic<bool> loses{false};

 private:
  ports::BlobLink& blobs_;
};

// Thread-safe.
class MemoryCheckpoints final : public ports::CheckpointStore {
 public:
  StatusOr<std::string> write(const ports::Checkpoint& checkpoint) override;
  std::vector<ports::Checkpoint> all() const;

 private:
  mutable std::mutex mutex_;
  std::vector<ports::Checkpoint> checkpoints_;
};

class CountingTokens final : public ports::TokenSource {
 public:
  explicit CountingTokens(uint32_t vocab) : vocab_(vocab) {}
  StatusOr<std::vector<uint32_t>> read(const core::TokenShard& shard, uint64_t first,
                                       uint64_t count) override;

 private:
  const uint32_t vocab_;
};

}  // namespace tessera::test
