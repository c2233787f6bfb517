// The journal: an append-only, hash-chained list of records in SQLite (WAL). It is the run's ledger
// (docs/formats/journal.md). Table
//   entries(sequence INTEGER PRIMARY KEY, unix_ms, kind TEXT, body BLOB, json TEXT, chain BLOB)
//   chain = BLAKE2b-256(previous chain | sequence u64 | unix_ms i64 |
//                       kind, u32 length first | body, u32 length first)
// Not thread-safe: its owner's thread only. Another process may read the file at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::store {

inline constexpr size_t kMaxKindBytes = 255;
inline constexpr size_t kMaxBodyBytes = 16u << 20;  // of a body, and of a JSON text

struct JournalRecord {
  uint64_t sequence = 0;  // from 1, without gaps; set by append
  int64_t unix_ms = 0;
  std::string kind;  // name of the event type
  std::string body;  // canonical bytes
  std::string json;  // the same for people and SQL
};

class Journal {
 public:
  virtual ~Journal() = default;
  // All records in one durable transaction, or none. Sets their sequences. Many records in one call
  // share one flush of the disk: that is the group commit.
  virtual Status append(std::vector<JournalRecord>* records) = 0;
  // Calls `visit` for every record with sequence > after, in order; stops at the first error and
  // returns it. Checks the chain on the way: no record reaches `visit` that does not continue it
  // (DATA_LOSS names the first bad sequence). DATA_LOSS too if `after` itself (0 aside) is not in
  // the journal. `visit` may append: it is then visited as well.
  virtual Status replay(uint64_t after,
                        const std::function<Status(const JournalRecord&)>& visit) = 0;
  // 0: empty. Of a read-only journal: what its writer has committed by now.
  virtual uint64_t last_sequence() const = 0;
  // Recomputes the whole chain; DATA_LOSS names the first bad sequence.
  virtual Status verify_chain() = 0;
};

// Opens or creates (the folder too). FAILED_PRECONDITION: a file with another application id or
// schema version, saying what was found, or one that is open for writing already (flock on
// PATH.lock), with what to do. DATA_LOSS: no database. read_only never creates: NOT_FOUND.
StatusOr<std::unique_ptr<Journal>> open_journal(const std::string& path, bool read_only = false);

}  // namespace tessera::store
