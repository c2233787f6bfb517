#include "tessera/store/journal.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "store/file_lock.h"
#include "store/sqlite.h"
#include "tessera/base/bytes.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"

namespace tessera::store {

Digest next_chain(const Digest& previous, const JournalRecord& record, uint64_t sequence) {
  ByteWriter head;
  head.raw(previous.bytes.data(), previous.bytes.size());
  head.number(sequence);
  head.number(record.unix_ms);
  head.text(record.kind);
  head.number(static_cast<uint32_t>(record.body.size()));
  Hasher hasher;
  hasher.update(head.bytes());
  hasher.update(record.body);
  return hasher.finish();
}

namespace {

constexpr int64_t kApplicationId = 0x5453524a;  // "TSRJ"
constexpr int64_t kSchemaVersion = 1;
// A page of a replay: the read transaction ends after it, so that a slow visitor does not keep the
// writer's log from being reused, and the visitor may append.
constexpr size_t kPageRecords = 512;
constexpr size_t kPageBytes = 4u << 20;

constexpr char kCreate[] = R"sql(
  CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    unix_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    json TEXT NOT NULL,
    chain BLOB NOT NULL
  ) STRICT
)sql";
constexpr char kInsert[] = "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
constexpr char kSelectPage[] =
    "SELECT sequence, unix_ms, kind, body, json, chain FROM entries WHERE sequence > ?1 ORDER BY "
    "sequence";
constexpr char kSelectChain[] = "SELECT chain FROM entries WHERE sequence = ?1";
constexpr char kSelectNewest[] =
    "SELECT sequence, unix_ms, kind, body, json FROM entries WHERE kind = ?1 AND sequence <= ?2 "
    "ORDER BY sequence DESC LIMIT 1";
constexpr char kSelectLast[] = "SELECT coalesce(max(sequence), 0) FROM entries";

struct ChainedRecord {
  JournalRecord record;
  std::string chain;
};

// The statement's row begins with the columns sequence, unix_ms, kind, body, json.
JournalRecord record_of(const SqliteStatement& row) {
  JournalRecord record;
  record.sequence = static_cast<uint64_t>(row.number(0));
  record.unix_ms = row.number(1);
  record.kind = row.bytes(2);
  record.body = row.bytes(3);
  record.json = row.bytes(4);
  return record;
}

class SqliteJournal : public Journal {
 public:
  SqliteJournal(std::string path, bool read_only) : path_(std::move(path)), read_only_(read_only) {}
  Status start();

  Status append(std::vector<JournalRecord>* records) override;
  Status replay(uint64_t after, const std::function<Status(const JournalRecord&)>& visit) override;
  StatusOr<std::optional<JournalRecord>> newest(std::string_view kind, uint64_t through) override;
  uint64_t last_sequence() const override;
  StatusOr<Digest> chain_at(uint64_t sequence) override { return read_chain(sequence); }
  Status verify_chain() override {
    return replay(0, [](const JournalRecord&) { return ok_status(); });
  }

 private:
  Status create_if_new();
  Status check_identity();
  Status check_record(const JournalRecord& record) const;
  Status insert(const JournalRecord& record, uint64_t sequence, const Digest& chain);
  // The chain value of `sequence`; zeros for 0.
  StatusOr<Digest> read_chain(uint64_t sequence);
  StatusOr<std::vector<ChainedRecord>> read_page(uint64_t after);

  const std::string path_;
  const bool read_only_;
  // Declared so that statements are finalised first and the lock is given up last.
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<SqliteConnection> connection_;
  std::unique_ptr<SqliteStatement> insert_;
  std::unique_ptr<SqliteStatement> select_page_;
  std::unique_ptr<SqliteStatement> select_chain_;
  std::unique_ptr<SqliteStatement> select_newest_;
  std::unique_ptr<SqliteStatement> select_last_;
  uint64_t last_sequence_ = 0;  // of the writer, which is the only one to change it
  Digest last_chain_;
};

Status SqliteJournal::start() {
  if (path_.empty()) return invalid_argument("the journal's path is empty");
  if (!read_only_) {
    const std::string folder = std::filesystem::path(path_).parent_path().string();
    if (!folder.empty()) TESSERA_RETURN_IF_ERROR(make_directories(folder));
    StatusOr<std::unique_ptr<FileLock>> lock = FileLock::acquire(path_ + ".lock");
    if (!lock.ok()) {
      return annotate(
          lock.status(),
          fmt::format("{}: a journal has one writer; stop the other one, or open read-only",
                      path_));
    }
    lock_ = *std::move(lock);
  }
  TESSERA_ASSIGN_OR_RETURN(
      connection_,
      SqliteConnection::open(path_, read_only_ ? SqliteConnection::Mode::kReadOnly
                                               : SqliteConnection::Mode::kReadWriteCreate));
  if (!read_only_) TESSERA_RETURN_IF_ERROR(create_if_new());
  TESSERA_RETURN_IF_ERROR(check_identity());
  if (!read_only_) {
    // FULL: the log is flushed at every commit, so an acknowledged record survives a power failure.
    TESSERA_RETURN_IF_ERROR(connection_->execute("PRAGMA synchronous = FULL"));
    TESSERA_RETURN_IF_ERROR(connection_->execute("PRAGMA journal_size_limit = 67108864"));
    TESSERA_ASSIGN_OR_RETURN(insert_, connection_->prepare(kInsert));
  }
  TESSERA_ASSIGN_OR_RETURN(select_page_, connection_->prepare(kSelectPage));
  TESSERA_ASSIGN_OR_RETURN(select_chain_, connection_->prepare(kSelectChain));
  TESSERA_ASSIGN_OR_RETURN(select_newest_, connection_->prepare(kSelectNewest));
  TESSERA_ASSIGN_OR_RETURN(select_last_, connection_->prepare(kSelectLast));
  TESSERA_ASSIGN_OR_RETURN(const int64_t last, connection_->query_number(kSelectLast));
  if (last < 0) return data_loss("{}: the last record has the sequence {}", path_, last);
  last_sequence_ = static_cast<uint64_t>(last);
  TESSERA_ASSIGN_OR_RETURN(last_chain_, read_chain(last_sequence_));
  return ok_status();
}

// Only an empty database becomes a journal: one that was never written, or whose creation was cut
// off.
Status SqliteJournal::create_if_new() {
  TESSERA_ASSIGN_OR_RETURN(const int64_t application_id,
                           connection_->query_number("PRAGMA application_id"));
  TESSERA_ASSIGN_OR_RETURN(const int64_t objects,
                           connection_->query_number("SELECT count(*) FROM sqlite_schema"));
  if (application_id != 0 || objects != 0) return ok_status();
  TESSERA_ASSIGN_OR_RETURN(const std::string mode,
                           connection_->query_text("PRAGMA journal_mode = WAL"));
  if (mode != "wal") {
    return failed_precondition(
        "{}: SQLite can't use its write-ahead log here (it answered '{}'); put the journal on "
        "a local file system",
        path_, mode);
  }
  return connection_->transaction([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(
        connection_->execute(fmt::format("PRAGMA application_id = {}", kApplicationId).c_str()));
    TESSERA_RETURN_IF_ERROR(
        connection_->execute(fmt::format("PRAGMA user_version = {}", kSchemaVersion).c_str()));
    return connection_->execute(kCreate);
  });
}

Status SqliteJournal::check_identity() {
  TESSERA_ASSIGN_OR_RETURN(const int64_t application_id,
                           connection_->query_number("PRAGMA application_id"));
  if (application_id != kApplicationId) {
    return failed_precondition(
        "{}: a SQLite database, but not a Tessera journal (application id {:#010x}, a journal "
        "has {:#010x}); name another file",
        path_, application_id, kApplicationId);
  }
  TESSERA_ASSIGN_OR_RETURN(const int64_t version, connection_->query_number("PRAGMA user_version"));
  if (version != kSchemaVersion) {
    return failed_precondition(
        "{}: a Tessera journal of schema version {}; this program reads version {}: use the "
        "release that wrote it",
        path_, version, kSchemaVersion);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string mode, connection_->query_text("PRAGMA journal_mode"));
  if (mode != "wal") {
    return failed_precondition(
        "{}: its journal mode is '{}', not wal: it was changed by hand; change it back with "
        "PRAGMA journal_mode = WAL",
        path_, mode);
  }
  return ok_status();
}

Status SqliteJournal::check_record(const JournalRecord& record) const {
  if (record.kind.empty() || record.kind.size() > kMaxKindBytes) {
    return invalid_argument("a journal record's kind has 1 to {} bytes, not {}", kMaxKindBytes,
                            record.kind.size());
  }
  if (record.body.size() > kMaxBodyBytes || record.json.size() > kMaxBodyBytes) {
    return invalid_argument(
        "a journal record ({}) with a body of {} and a JSON of {} bytes; the limit is {} each: "
        "put large content into blobs and journal its digest",
        record.kind, record.body.size(), record.json.size(), kMaxBodyBytes);
  }
  return ok_status();
}

Status SqliteJournal::insert(const JournalRecord& record, uint64_t sequence, const Digest& chain) {
  insert_->bind_number(1, static_cast<int64_t>(sequence));
  insert_->bind_number(2, record.unix_ms);
  insert_->bind_text(3, record.kind);
  insert_->bind_blob(4, record.body);
  insert_->bind_text(5, record.json);
  insert_->bind_blob(6, chain.view());
  const Status status = insert_->step().status();
  insert_->reset();
  return status;
}

Status SqliteJournal::append(std::vector<JournalRecord>* records) {
  if (read_only_)
    return failed_precondition("{}: opened read-only, nothing can be appended", path_);
  for (const JournalRecord& record : *records) TESSERA_RETURN_IF_ERROR(check_record(record));
  if (records->empty()) return ok_status();

  uint64_t sequence = last_sequence_;
  Digest chain = last_chain_;
  TESSERA_RETURN_IF_ERROR(connection_->transaction([&]() -> Status {
    for (const JournalRecord& record : *records) {
      chain = next_chain(chain, record, ++sequence);
      TESSERA_RETURN_IF_ERROR(insert(record, sequence, chain));
    }
    return ok_status();
  }));
  for (JournalRecord& record : *records) record.sequence = ++last_sequence_;
  last_chain_ = chain;
  return ok_status();
}

StatusOr<Digest> SqliteJournal::read_chain(uint64_t sequence) {
  Digest chain;
  if (sequence == 0) return chain;
  select_chain_->bind_number(1, static_cast<int64_t>(sequence));
  const StatusOr<bool> row = select_chain_->step();
  const bool good = row.ok() && *row && Digest::from(select_chain_->bytes(0), &chain);
  select_chain_->reset();
  if (!row.ok()) return row.status();
  if (!*row) {
    return data_loss(
        "{}: record {} is missing; the journal is older than what refers to it, or was cut", path_,
        sequence);
  }
  if (!good) return data_loss("{}: record {} has a damaged chain value", path_, sequence);
  return chain;
}

StatusOr<std::vector<ChainedRecord>> SqliteJournal::read_page(uint64_t after) {
  std::vector<ChainedRecord> page;
  size_t page_bytes = 0;
  Status status = ok_status();
  select_page_->bind_number(1, static_cast<int64_t>(after));
  while (page.size() < kPageRecords && page_bytes < kPageBytes) {
    const StatusOr<bool> row = select_page_->step();
    if (!row.ok()) status = row.status();
    if (!row.ok() || !*row) break;
    ChainedRecord item;
    item.record = record_of(*select_page_);
    item.chain = select_page_->bytes(5);
    page_bytes += item.record.body.size() + item.record.json.size();
    page.push_back(std::move(item));
  }
  select_page_->reset();
  if (!status.ok()) return status;
  return page;
}

Status SqliteJournal::replay(uint64_t after,
                             const std::function<Status(const JournalRecord&)>& visit) {
  TESSERA_ASSIGN_OR_RETURN(Digest chain, read_chain(after));
  while (true) {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<ChainedRecord> page, read_page(after));
    if (page.empty()) return ok_status();
    for (const ChainedRecord& item : page) {
      if (item.record.sequence != after + 1) {
        return data_loss(
            "{}: record {} is missing (the next one is {}); restore the journal from a copy", path_,
            after + 1, item.record.sequence);
      }
      ++after;
      chain = next_chain(chain, item.record, after);
      if (item.chain != chain.view()) {
        return data_loss(
            "{}: record {} does not fit the hash chain: it or its chain value was changed; restore "
            "the "
            "journal from a copy",
            path_, after);
      }
      TESSERA_RETURN_IF_ERROR(visit(item.record));
    }
  }
}

StatusOr<std::optional<JournalRecord>> SqliteJournal::newest(std::string_view kind,
                                                             uint64_t through) {
  select_newest_->bind_text(1, kind);
  select_newest_->bind_number(2, static_cast<int64_t>(std::min<uint64_t>(through, INT64_MAX)));
  const StatusOr<bool> row = select_newest_->step();
  std::optional<JournalRecord> record;
  if (row.ok() && *row) record = record_of(*select_newest_);
  select_newest_->reset();
  if (!row.ok()) return row.status();
  return record;
}

uint64_t SqliteJournal::last_sequence() const {
  if (!read_only_) return last_sequence_;
  const StatusOr<bool> row = select_last_->step();
  const int64_t last = row.ok() && *row ? select_last_->number(0) : -1;
  select_last_->reset();
  return last < 0 ? last_sequence_ : static_cast<uint64_t>(last);
}

}  // namespace

StatusOr<std::unique_ptr<Journal>> open_journal(const std::string& path, bool read_only) {
  auto journal = std::make_unique<SqliteJournal>(path, read_only);
  TESSERA_RETURN_IF_ERROR(journal->start());
  return std::unique_ptr<Journal>(std::move(journal));
}

}  // namespace tessera::store
