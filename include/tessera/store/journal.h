// The journal: an append-only, hash-chained list of records in SQLite (WAL). It is the run's ledger.
// Table entries(sequence INTEGER PRIMARY KEY, unix_ms, kind TEXT, body BLOB, json TEXT, chain BLOB):
//   chain = BLAKE2b-256(previous chain | sequence u64 | unix_ms i64 | kind, u32 length first | body, u32 length first)
// Not thread-safe: its owner's thread only. Another process may read the file at any time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::store {

struct JournalRecord {
  uint64_t sequence = 0;  // from 1, without gaps; set by append
  int64_t unix_ms = 0;
  std::string kind;       // name of the event type
  std::string body;       // canonical bytes
  std::string json;       // the same for people and SQL
};

class Journal {
 public:
  virtual ~Journal() = default;
  // All records in one durable transaction, or none. Sets their sequences.
  virtual Status append(std::vector<JournalRecord>* records) = 0;
  // Calls `visit` for every record with sequence > after, in order; stops at the first error and returns it.
  virtual Status replay(uint64_t after, const std::function<Status(const JournalRecord&)>& visit) = 0;
  virtual uint64_t last_sequence() const = 0;
  // Recomputes the whole chain; DATA_LOSS names the first bad sequence.
  virtual Status verify_chain() = 0;
};

// Opens or creates. Refuses a file with another application id or schema version, saying what it found; a file another
// process has open for writing is refused with what to do. read_only never creates.
StatusOr<std::unique_ptr<Journal>> open_journal(const std::string& path, bool read_only = false);

}  // namespace tessera::store
