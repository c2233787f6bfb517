#include "support/memory_ports.h"

namespace tessera::test {

Status MemoryJournal::append(std::vector<ports::JournalRecord>* records) {
  std::lock_guard lock(mutex_);
  if (failing_) return data_loss("disk full");
  for (ports::JournalRecord& record : *records) {
    record.sequence = records_.size() + 1;
    records_.push_back(record);
    if (record.kind == ports::kSnapshotKind) continue;
    const std::optional<core::Event> event = core::decode_event(record.kind, record.body);
    TESSERA_CHECK(event.has_value());
    mirror_.step(record.unix_ms, *event);
  }
  changed_.notify_all();
  return ok_status();
}

Status MemoryJournal::replay(uint64_t after,
                             const std::function<Status(const ports::JournalRecord&)>& visit) {
  std::lock_guard lock(mutex_);
  replayed_after_ = after;
  for (const ports::JournalRecord& record : records_) {
    if (record.sequence > after) TESSERA_RETURN_IF_ERROR(visit(record));
  }
  return ok_status();
}

StatusOr<std::optional<ports::JournalRecord>> MemoryJournal::newest(std::string_view kind,
                                                                    uint64_t through) {
  std::lock_guard lock(mutex_);
  std::optional<ports::JournalRecord> found;
  for (const ports::JournalRecord& record : records_) {
    if (record.kind == kind && record.sequence <= through) found = record;
  }
  return found;
}

void MemoryJournal::damage(uint64_t sequence) {
  std::lock_guard lock(mutex_);
  records_.at(sequence - 1).body.resize(records_.at(sequence - 1).body.size() / 2);
}

uint64_t MemoryJournal::replayed_after() const {
  std::lock_guard lock(mutex_);
  return replayed_after_;
}

uint64_t MemoryJournal::last_sequence() const {
  std::lock_guard lock(mutex_);
  return records_.size();
}

bool MemoryJournal::wait(const Condition& condition, std::chrono::seconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [&] { return condition(mirror_.state()); });
}

core::OrchestratorState MemoryJournal::state() const {
  std::lock_guard lock(mutex_);
  return mirror_.state();
}

std::vector<core::Event> MemoryJournal::events() const {
  std::lock_guard lock(mutex_);
  std::vector<core::Event> events;
  for (const ports::JournalRecord& record : records_) {
    if (record.kind != ports::kSnapshotKind)
      events.push_back(*core::decode_event(record.kind, record.body));
  }
  return events;
}

void MemoryJournal::write_garbage() {
  std::lock_guard lock(mutex_);
  records_.push_back({.sequence = records_.size() + 1,
                      .unix_ms = 0,
                      .kind = "of the future",
                      .body = "?",
                      .json = "{}"});
}

StatusOr<std::vector<Digest>> MemoryBlobs::put(const std::vector<std::string>& blobs) {
  std::vector<Digest> names;
  for (const std::string& blob : blobs) {
    if (blob.size() > (1u << 20)) return invalid_argument("a blob of {} bytes", blob.size());
    names.push_back(digest_of(blob));
    std::lock_guard lock(mutex_);
    blobs_[names.back()] = blob;
  }
  return names;
}

StatusOr<std::vector<std::string>> MemoryBlobs::get(const std::vector<Digest>& digests) {
  std::vector<std::string> blobs;
  std::lock_guard lock(mutex_);
  for (const Digest& digest : digests) {
    const auto found = blobs_.find(digest);
    if (found == blobs_.end()) return not_found("no blob {}", digest.brief());
    blobs.push_back(found->second);
  }
  return blobs;
}

void MemoryBlobs::forget(const Digest& digest) {
  std::lock_guard lock(mutex_);
  blobs_.erase(digest);
}

size_t MemoryBlobs::size() const {
  std::lock_guard lock(mutex_);
  return blobs_.size();
}

StatusOr<std::vector<Digest>> LosingBlobs::put(const std::vector<std::string>& blobs) {
  if (!loses) return blobs_.put(blobs);
  std::vector<Digest> names;
  for (const std::string& blob : blobs) names.push_back(digest_of(blob));
  return names;
}

StatusOr<std::string> MemoryCheckpoints::write(const ports::Checkpoint& checkpoint) {
  std::lock_guard lock(mutex_);
  checkpoints_.push_back(checkpoint);
  return "checkpoint " + std::to_string(checkpoints_.size());
}

std::vector<ports::Checkpoint> MemoryCheckpoints::all() const {
  std::lock_guard lock(mutex_);
  return checkpoints_;
}

StatusOr<std::vector<uint32_t>> CountingTokens::read(const core::TokenShard& shard, uint64_t first,
                                                     uint64_t count) {
  if (first + count > shard.tokens)
    return error(absl::StatusCode::kOutOfRange, "past the shard's end");
  std::vector<uint32_t> tokens;
  for (uint64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<uint32_t>((first + i) % vocab_));
  return tokens;
}

}  // namespace tessera::test
