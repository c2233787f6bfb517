// Where an orchestrator keeps its events. The product's journal is SQLite (src/store/journal.cpp); tests keep one in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::ports {

// Records of this kind are no events: they are parts of the state's snapshots, which a replay passes over.
inline constexpr std::string_view kSnapshotKind = "snapshot";

struct JournalRecord {
  uint64_t sequence = 0;  // from 1, without gaps; set by append
  int64_t unix_ms = 0;
  std::string kind;       // name of the event type
  std::string body;       // canonical bytes
  std::string json;       // the same for people and SQL
};

// Not thread-safe: its owner's thread only.
class Journal {
 public:
  virtual ~Journal() = default;
  // All records in one durable transaction, or none. Sets their sequences.
  virtual Status append(std::vector<JournalRecord>* records) = 0;
  // Calls `visit` for every record with sequence > after, in order; stops at the first error and returns it.
  virtual Status replay(uint64_t after, const std::function<Status(const JournalRecord&)>& visit) = 0;
  // The newest record of this kind with sequence <= through; nothing if there is none. Not checked against the chain: a
  // replay that passes it does that.
  virtual StatusOr<std::optional<JournalRecord>> newest(std::string_view kind, uint64_t through) = 0;
  virtual uint64_t last_sequence() const = 0;
  // Chain value of a record, zeros for 0: what the writer committed, not recomputed. DATA_LOSS if there is no such record.
  virtual StatusOr<Digest> chain_at(uint64_t sequence) {
    return error(absl::StatusCode::kUnimplemented, "this journal keeps no chain; record {} has no value", sequence);
  }
  // Recomputes the whole chain; DATA_LOSS names the first bad sequence.
  virtual Status verify_chain() = 0;
};

}  // namespace tessera::ports
