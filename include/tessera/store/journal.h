// The journal: an append-only, hash-chained list of records in SQLite (WAL). It is the run's ledger
// (docs/formats/journal.md). Table
//   entries(sequence INTEGER PRIMARY KEY, unix_ms, kind TEXT, body BLOB, json TEXT, chain BLOB)
//   chain = BLAKE2b-256(previous chain | sequence u64 | unix_ms i64 |
//                       kind, u32 length first | body, u32 length first)
// Not thread-safe: its owner's thread only. Another process may read the file at any time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/ports/journal.h"

namespace tessera::store {

using Journal = ports::Journal;
using JournalRecord = ports::JournalRecord;

inline constexpr size_t kMaxKindBytes = 255;
inline constexpr size_t kMaxBodyBytes = 16u << 20;  // of a body, and of a JSON text

// The chain value of a record with this number, after the one of the record before it (zeros before the first).
Digest next_chain(const Digest& previous, const JournalRecord& record, uint64_t sequence);

// Opens or creates (the folder too). FAILED_PRECONDITION: a file with another application id or
// schema version, saying what was found, or one that is open for writing already (flock on
// PATH.lock), with what to do. DATA_LOSS: no database. read_only never creates: NOT_FOUND.
//
// What this journal adds to the port's contract:
// append(): INVALID_ARGUMENT for a record over the limits above; many records in one call share one
//   flush of the disk, which is the group commit.
// replay(): checks the chain on the way, so that no record reaches the visitor that does not
//   continue it (DATA_LOSS names the first bad sequence); DATA_LOSS too if `after` itself (0 aside)
//   is not there. The visitor may append: what it appends is visited as well.
// last_sequence(): of a read-only journal, what its writer has committed by now.
StatusOr<std::unique_ptr<Journal>> open_journal(const std::string& path, bool read_only = false);

}  // namespace tessera::store
