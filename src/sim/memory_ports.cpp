#include "memory_ports.h"

#include <fmt/format.h>

#include "tessera/core/invariants.h"

namespace tessera::sim {

Status MemoryJournal::append(std::vector<ports::JournalRecord>* records) {
  for (ports::JournalRecord& record : *records) {
    record.sequence = ++sequence_;
    if (watcher) watcher(record);
    if (check_ && broken_.empty()) check(record);
    if (keep_) records_.push_back(std::move(record));
  }
  return ok_status();
}

StatusOr<std::optional<ports::JournalRecord>> MemoryJournal::newest(std::string_view kind,
                                                                    uint64_t through) {
  for (auto record = records_.rbegin(); record != records_.rend(); ++record) {
    if (record->kind == kind && record->sequence <= through) return *record;
  }
  return std::optional<ports::JournalRecord>();
}

void MemoryJournal::check(const ports::JournalRecord& record) {
  if (record.kind == ports::kSnapshotKind) return;
  const std::optional<core::Event> event = core::decode_event(record.kind, record.body);
  if (!event) {
    broken_ =
        fmt::format("journal entry {} ('{}') can't be read back", record.sequence, record.kind);
    return;
  }
  mirror_.step(record.unix_ms, *event);
  const std::string broken = core::broken_invariant(mirror_);
  if (!broken.empty())
    broken_ =
        fmt::format("after journal entry {} ('{}'): {}", record.sequence, record.kind, broken);
}

Status MemoryJournal::replay(uint64_t after,
                             const std::function<Status(const ports::JournalRecord&)>& visit) {
  TESSERA_CHECK(keep_ || sequence_ == 0);
  for (const ports::JournalRecord& record : records_) {
    if (record.sequence > after) TESSERA_RETURN_IF_ERROR(visit(record));
  }
  return ok_status();
}

StatusOr<std::vector<Digest>> MemoryBlobs::put(const std::vector<std::string>& blobs) {
  std::vector<Digest> names;
  for (const std::string& blob : blobs) {
    names.push_back(digest_of(blob));
    Blob& stored = blobs_[names.back()];
    stored.bytes = blob;
    stored.age = sweeps_;
  }
  return names;
}

StatusOr<std::vector<std::string>> MemoryBlobs::get(const std::vector<Digest>& digests) {
  std::vector<std::string> blobs;
  for (const Digest& digest : digests) {
    const auto found = blobs_.find(digest);
    if (found == blobs_.end()) return not_found("no blob {}", digest.brief());
    blobs.push_back(found->second.bytes);
  }
  return blobs;
}

uint64_t MemoryBlobs::sweep(const std::set<Digest>& keep) {
  ++sweeps_;
  uint64_t bytes = 0;
  for (auto it = blobs_.begin(); it != blobs_.end();) {
    const bool needed = it->second.age + 2 >= sweeps_ || keep.contains(it->first);
    if (!needed) bytes += it->second.bytes.size();
    it = needed ? std::next(it) : blobs_.erase(it);
  }
  return bytes;
}

}  // namespace tessera::sim
