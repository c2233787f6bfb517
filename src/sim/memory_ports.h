// Journal, blobs and checkpoints of a simulation. One thread.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "tessera/base/crypto.h"
#include "tessera/core/orchestrator.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/journal.h"
#include "tessera/ports/links.h"

namespace tessera::sim {

// Outlives the orchestrator's processes, as a disk would. With `check`, everything appended is also
// stepped into a state machine of its own, whose invariants are checked after every event and which
// must come to the same state.
class MemoryJournal final : public ports::Journal {
 public:
  MemoryJournal(bool keep, bool check) : keep_(keep), check_(check) {}

  Status append(std::vector<ports::JournalRecord>* records) override;
  Status replay(uint64_t after,
                const std::function<Status(const ports::JournalRecord&)>& visit) override;
  StatusOr<std::optional<ports::JournalRecord>> newest(std::string_view kind,
                                                       uint64_t through) override;
  uint64_t last_sequence() const override { return sequence_; }
  Status verify_chain() override { return ok_status(); }

  // Every record, when it is appended.
  std::function<void(const ports::JournalRecord&)> watcher;
  // The first thing that must never be and was; empty if there is none.
  const std::string& broken() const { return broken_; }
  // Null without `check`.
  const core::Orchestrator* mirror() const { return check_ ? &mirror_ : nullptr; }
  bool keeps() const { return keep_; }

 private:
  void check(const ports::JournalRecord& record);

  const bool keep_;
  const bool check_;
  std::vector<ports::JournalRecord> records_;
  uint64_t sequence_ = 0;
  core::Orchestrator mirror_;
  std::string broken_;
};

class MemoryBlobs final : public ports::BlobLink {
 public:
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override;
  void forget(const Digest& digest) { blobs_.erase(digest); }
  // Removes what is neither named nor younger than the sweep before the last; returns the bytes.
  uint64_t sweep(const std::set<Digest>& keep);
  size_t size() const { return blobs_.size(); }

 private:
  struct Blob {
    std::string bytes;
    uint64_t age = 0;  // the sweep it was put before
  };
  struct Hash {
    size_t operator()(const Digest& digest) const {
      size_t value = 0;
      std::memcpy(&value, digest.bytes.data(), sizeof(value));
      return value;
    }
  };
  std::unordered_map<Digest, Blob, Hash> blobs_;  // never walked in an order that matters
  uint64_t sweeps_ = 0;
};

// Takes every checkpoint and keeps none.
class MemoryCheckpoints final : public ports::CheckpointStore {
 public:
  StatusOr<std::string> write(const ports::Checkpoint& checkpoint) override {
    return "checkpoint " + std::to_string(++written_);
  }
  uint64_t written() const { return written_; }

 private:
  uint64_t written_ = 0;
};

}  // namespace tessera::sim
