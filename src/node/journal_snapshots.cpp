#include "tessera/node/journal_snapshots.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "tessera/base/log.h"

namespace tessera::node {

// Parts are appended in order, so the newest whole snapshot is found from its last part backwards. One that a crash cut off
// has no last part.
StatusOr<std::string> JournalSnapshots::read(uint64_t* through, uint64_t* after) {
  std::vector<std::string> pieces;
  std::optional<Part> expected;
  while (*through > 0) {
    TESSERA_ASSIGN_OR_RETURN(const std::optional<ports::JournalRecord> record,
                             journal_.newest(ports::kSnapshotKind, *through));
    if (!record) break;
    *through = record->sequence - 1;
    Part part;
    const bool readable = decode(record->body, &part) && part.part < part.parts && part.after < record->sequence;
    if (readable && part.part + 1 == part.parts) {
      pieces.clear();
      expected = part;
    } else if (!readable || !expected || part.after != expected->after || part.parts != expected->parts ||
               part.part + 1 != expected->part) {
      expected.reset();
      continue;
    }
    expected->part = part.part;
    pieces.push_back(std::move(part.bytes));
    if (expected->part > 0) continue;
    *after = expected->after;
    std::string bytes;
    for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) bytes += *piece;
    return bytes;
  }
  *through = 0;
  return std::string();
}

StatusOr<uint64_t> JournalSnapshots::restore(core::Orchestrator* core) {
  uint64_t through = journal_.last_sequence();
  taken_at_ = 0;
  while (through > 0) {
    uint64_t after = 0;
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read(&through, &after));
    if (bytes.empty()) break;
    if (core->load(bytes)) {
      taken_at_ = after;
      return after;
    }
    spdlog::warn("the journal's snapshot after entry {} is of another version of this program; an older one, or the whole "
                 "journal, is replayed instead", after);
  }
  return uint64_t{0};
}

void JournalSnapshots::take_if_due(const core::Orchestrator& core) {
  const uint64_t last = journal_.last_sequence();
  if (every_ == 0 || !unwritten_.empty() || last - taken_at_ < every_) return;
  taken_at_ = last;
  const std::string bytes = core.snapshot();
  const auto parts = static_cast<uint32_t>((bytes.size() + kPartBytes - 1) / kPartBytes);
  for (uint32_t i = 0; i < parts; ++i) unwritten_.push_back({last, i, parts, bytes.substr(i * kPartBytes, kPartBytes)});
}

void JournalSnapshots::add_part(int64_t unix_ms, std::vector<ports::JournalRecord>* batch) {
  if (unwritten_.empty()) return;
  const Part& part = unwritten_.front();
  ports::JournalRecord record;
  record.unix_ms = unix_ms;
  record.kind = ports::kSnapshotKind;
  record.body = encode(part);
  record.json = fmt::format("{{\"after\":{},\"part\":{},\"parts\":{}}}", part.after, part.part, part.parts);
  batch->push_back(std::move(record));
  unwritten_.pop_front();
}

}  // namespace tessera::node
