#include "tessera/store/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "tessera/base/bytes.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

JournalRecord record_of(uint64_t number) {
  JournalRecord record;
  record.unix_ms = 1'700'000'000'000 + static_cast<int64_t>(number);
  record.kind = number % 2 == 0 ? "lease" : "receipt";
  record.body = std::string("body\0", 5) + std::to_string(number);
  record.json = "{\"number\":" + std::to_string(number) + "}";
  return record;
}

std::vector<JournalRecord> records_of(uint64_t first, uint64_t last) {
  std::vector<JournalRecord> records;
  for (uint64_t number = first; number <= last; ++number) records.push_back(record_of(number));
  return records;
}

std::unique_ptr<Journal> open_or_fail(const std::string& path, bool read_only = false) {
  StatusOr<std::unique_ptr<Journal>> journal = open_journal(path, read_only);
  EXPECT_TRUE(journal.ok()) << journal.status();
  return journal.ok() ? *std::move(journal) : nullptr;
}

// A journal file of records 1..count, closed.
void make_journal(const std::string& path, uint64_t count) {
  const std::unique_ptr<Journal> journal = open_or_fail(path);
  std::vector<JournalRecord> records = records_of(1, count);
  ASSERT_TRUE(journal->append(&records).ok());
}

// Changes the file behind the journal's back, as a vandal would.
void run_sql(const std::string& path, const std::string& sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
      << sqlite3_errmsg(database);
  sqlite3_close(database);
}

std::vector<uint64_t> replayed_sequences(Journal* journal, uint64_t after) {
  std::vector<uint64_t> sequences;
  EXPECT_TRUE(journal
                  ->replay(after,
                           [&](const JournalRecord& record) {
                             sequences.push_back(record.sequence);
                             return ok_status();
                           })
                  .ok());
  return sequences;
}

TEST(JournalTest, FindsTheNewestRecordOfAKind) {
  const TemporaryFolder folder;
  make_journal(folder / "journal.db", 7);
  const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db", true);
  const auto sequence_of = [&](const std::string& kind, uint64_t through) -> uint64_t {
    const StatusOr<std::optional<JournalRecord>> record = journal->newest(kind, through);
    EXPECT_TRUE(record.ok()) << record.status();
    if (!record.ok() || !*record) return 0;
    EXPECT_EQ((*record)->body, record_of((*record)->sequence).body);
    return (*record)->sequence;
  };
  EXPECT_EQ(sequence_of("lease", UINT64_MAX), 6u);
  EXPECT_EQ(sequence_of("lease", 6), 6u);
  EXPECT_EQ(sequence_of("lease", 5), 4u);
  EXPECT_EQ(sequence_of("receipt", 7), 7u);
  EXPECT_EQ(sequence_of("lease", 1), 0u);
  EXPECT_EQ(sequence_of("snapshot", 7), 0u);
}

TEST(JournalTest, GivesBackWhatWasAppended) {
  const TemporaryFolder folder;
  const std::string path = folder / "run/journal.db";
  {
    const std::unique_ptr<Journal> journal = open_or_fail(path);
    EXPECT_EQ(journal->last_sequence(), 0u);
    EXPECT_TRUE(replayed_sequences(journal.get(), 0).empty());
    EXPECT_TRUE(journal->verify_chain().ok());
    std::vector<JournalRecord> none;
    EXPECT_TRUE(journal->append(&none).ok());
    std::vector<JournalRecord> first = records_of(1, 3);
    ASSERT_TRUE(journal->append(&first).ok());
    EXPECT_EQ(first[0].sequence, 1u);
    EXPECT_EQ(first[2].sequence, 3u);
    EXPECT_EQ(journal->last_sequence(), 3u);
  }
  const std::unique_ptr<Journal> journal = open_or_fail(path);
  std::vector<JournalRecord> more = records_of(4, 5);
  ASSERT_TRUE(journal->append(&more).ok());
  uint64_t next = 3;
  ASSERT_TRUE(journal
                  ->replay(2,
                           [&](const JournalRecord& record) {
                             const JournalRecord expected = record_of(next);
                             EXPECT_EQ(record.sequence, next);
                             EXPECT_EQ(record.unix_ms, expected.unix_ms);
                             EXPECT_EQ(record.kind, expected.kind);
                             EXPECT_EQ(record.body, expected.body);
                             EXPECT_EQ(record.json, expected.json);
                             ++next;
                             return ok_status();
                           })
                  .ok());
  EXPECT_EQ(next, 6u);
  EXPECT_TRUE(journal->verify_chain().ok());
}

TEST(JournalTest, KeepsEmptyBodiesAndTexts) {
  const TemporaryFolder folder;
  const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db");
  std::vector<JournalRecord> records(1);
  records[0].kind = "pause";
  records[0].unix_ms = -5;
  ASSERT_TRUE(journal->append(&records).ok());
  ASSERT_TRUE(journal
                  ->replay(0,
                           [&](const JournalRecord& record) {
                             EXPECT_EQ(record.body, "");
                             EXPECT_EQ(record.json, "");
                             EXPECT_EQ(record.unix_ms, -5);
                             return ok_status();
                           })
                  .ok());
}

// The chain of one record, computed apart (Python: hashlib.blake2b(..., digest_size=32)).
TEST(JournalTest, ChainIsTheDocumentedHash) {
  const TemporaryFolder folder;
  const std::string path = folder / "journal.db";
  {
    const std::unique_ptr<Journal> journal = open_or_fail(path);
    std::vector<JournalRecord> records(2);
    records[0] = {0, 1700000000123, "lease", "abc", "{}"};
    records[1] = {0, 1700000000456, "receipt", std::string("\x00\xff", 2), "{}"};
    ASSERT_TRUE(journal->append(&records).ok());
  }
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  std::string chains;
  const auto collect = [](void* out, int, char** values, char**) {
    *static_cast<std::string*>(out) += std::string(values[0]) + "\n";
    return 0;
  };
  EXPECT_EQ(sqlite3_exec(database, "SELECT lower(hex(chain)) FROM entries ORDER BY sequence",
                         collect, &chains, nullptr),
            SQLITE_OK);
  sqlite3_close(database);
  EXPECT_EQ(chains,
            "abfbdf8594d52b66653f236a8c7cf8a813ae1c8be23d41209868bbbc6d6933fd\n"
            "ee88cda0cd92f022eb7705ff651b703378b315112c84ff74666aa0cc23ba60f5\n");
}

TEST(JournalTest, ReplayStopsAtTheVisitorsError) {
  const TemporaryFolder folder;
  make_journal(folder / "journal.db", 5);
  const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db");
  int visits = 0;
  const Status status = journal->replay(0, [&](const JournalRecord& record) {
    ++visits;
    return record.sequence == 3 ? invalid_argument("no more") : ok_status();
  });
  EXPECT_EQ(message_of(status), "no more");
  EXPECT_EQ(visits, 3);
}

TEST(JournalTest, ReplayCrossesPagesAndVisitsWhatTheVisitorAppends) {
  const TemporaryFolder folder;
  make_journal(folder / "journal.db", 1300);  // more than two pages
  const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db");
  uint64_t visited = 0;
  ASSERT_TRUE(journal
                  ->replay(0,
                           [&](const JournalRecord& record) -> Status {
                             EXPECT_EQ(record.sequence, ++visited);
                             if (record.sequence != 1300) return ok_status();
                             std::vector<JournalRecord> more = records_of(1301, 1301);
                             return journal->append(&more);
                           })
                  .ok());
  EXPECT_EQ(visited, 1301u);
}

TEST(JournalTest, AppendIsAllOrNothing) {
  const TemporaryFolder folder;
  const std::string path = folder / "journal.db";
  make_journal(path, 2);
  // Makes the database itself refuse a record in the middle of a transaction.
  run_sql(path,
          "CREATE TRIGGER refuse BEFORE INSERT ON entries WHEN NEW.kind = 'bad' "
          "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END");
  const std::unique_ptr<Journal> journal = open_or_fail(path);
  std::vector<JournalRecord> records = records_of(3, 5);
  records[1].kind = "bad";
  const Status status = journal->append(&records);
  EXPECT_THAT(message_of(status), HasSubstr("refused by the test"));
  EXPECT_EQ(records[0].sequence, 0u);
  EXPECT_EQ(journal->last_sequence(), 2u);
  EXPECT_EQ(replayed_sequences(journal.get(), 0), (std::vector<uint64_t>{1, 2}));

  std::vector<JournalRecord> good = records_of(3, 4);
  ASSERT_TRUE(journal->append(&good).ok());
  EXPECT_EQ(good[0].sequence, 3u);
  EXPECT_TRUE(journal->verify_chain().ok());
}

TEST(JournalTest, RefusesRecordsOutOfBounds) {
  const TemporaryFolder folder;
  const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db");
  std::vector<JournalRecord> records = records_of(1, 2);
  records[1].kind.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(journal->append(&records)));
  records[1].kind.assign(kMaxKindBytes + 1, 'k');
  EXPECT_TRUE(absl::IsInvalidArgument(journal->append(&records)));
  records[1] = record_of(2);
  records[1].body.assign(kMaxBodyBytes + 1, 'b');
  EXPECT_TRUE(absl::IsInvalidArgument(journal->append(&records)));
  EXPECT_EQ(journal->last_sequence(), 0u);
}

TEST(JournalTest, OneWriterAndReadersAtAnyTime) {
  const TemporaryFolder folder;
  const std::string path = folder / "journal.db";
  std::unique_ptr<Journal> writer = open_or_fail(path);
  std::vector<JournalRecord> records = records_of(1, 2);
  ASSERT_TRUE(writer->append(&records).ok());

  const Status second = open_journal(path).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(second));
  EXPECT_THAT(message_of(second), HasSubstr("a journal has one writer"));
  EXPECT_THAT(message_of(second), HasSubstr("held by process " + std::to_string(::getpid())));

  const std::unique_ptr<Journal> reader = open_or_fail(path, /*read_only=*/true);
  EXPECT_EQ(reader->last_sequence(), 2u);
  std::vector<JournalRecord> more = records_of(3, 3);
  EXPECT_TRUE(absl::IsFailedPrecondition(reader->append(&more)));
  ASSERT_TRUE(writer->append(&more).ok());
  EXPECT_EQ(reader->last_sequence(), 3u);
  EXPECT_EQ(replayed_sequences(reader.get(), 2), (std::vector<uint64_t>{3}));
  EXPECT_TRUE(reader->verify_chain().ok());

  writer.reset();
  EXPECT_EQ(open_or_fail(path)->last_sequence(), 3u);
}

TEST(JournalTest, ReadOnlyNeverCreates) {
  const TemporaryFolder folder;
  const std::string path = folder / "absent.db";
  EXPECT_TRUE(absl::IsNotFound(open_journal(path, true).status()));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(JournalTest, RefusesForeignFiles) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_file_atomic(folder / "text", std::string(5000, 'x')).ok());
  EXPECT_TRUE(absl::IsDataLoss(open_journal(folder / "text").status()));
  EXPECT_TRUE(absl::IsDataLoss(open_journal(folder / "text", true).status()));
  EXPECT_EQ(*read_file(folder / "text"), std::string(5000, 'x'));

  run_sql(folder / "other.db", "CREATE TABLE people (name TEXT)");
  const Status other = open_journal(folder / "other.db").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(other));
  EXPECT_THAT(message_of(other), HasSubstr("not a Tessera journal"));

  make_journal(folder / "application.db", 1);
  run_sql(folder / "application.db", "PRAGMA application_id = 4660");
  EXPECT_THAT(message_of(open_journal(folder / "application.db").status()),
              HasSubstr("0x00001234"));

  make_journal(folder / "version.db", 1);
  run_sql(folder / "version.db", "PRAGMA user_version = 7");
  const Status version = open_journal(folder / "version.db", true).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(version));
  EXPECT_THAT(message_of(version), HasSubstr("schema version 7; this program reads version 1"));

  make_journal(folder / "mode.db", 1);
  run_sql(folder / "mode.db", "PRAGMA journal_mode = DELETE");
  EXPECT_THAT(message_of(open_journal(folder / "mode.db").status()),
              HasSubstr("is 'delete', not wal"));

  EXPECT_TRUE(absl::IsInvalidArgument(open_journal("").status()));
}

TEST(JournalTest, AnEmptyFileBecomesAJournal) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_file_atomic(folder / "journal.db", "").ok());
  make_journal(folder / "journal.db", 2);
  EXPECT_EQ(open_or_fail(folder / "journal.db")->last_sequence(), 2u);
}

TEST(JournalTest, NamesTheFirstRecordThatWasChanged) {
  const struct {
    const char* sql;
    const char* message;
    uint64_t good;  // records a replay still gives
  } cases[] = {
      {"UPDATE entries SET body = x'00' WHERE sequence = 3", "record 3 does not fit", 2},
      {"UPDATE entries SET unix_ms = unix_ms + 1 WHERE sequence = 2", "record 2 does not fit", 1},
      {"UPDATE entries SET kind = 'leaseb' WHERE sequence = 4", "record 4 does not fit", 3},
      {"UPDATE entries SET chain = zeroblob(32) WHERE sequence = 1", "record 1 does not fit", 0},
      {"DELETE FROM entries WHERE sequence = 2", "record 2 is missing (the next one is 3)", 1},
      {"DELETE FROM entries WHERE sequence = 1", "record 1 is missing (the next one is 2)", 0},
  };
  for (const auto& damage : cases) {
    SCOPED_TRACE(damage.sql);
    const TemporaryFolder folder;
    make_journal(folder / "journal.db", 5);
    run_sql(folder / "journal.db", damage.sql);
    const std::unique_ptr<Journal> journal = open_or_fail(folder / "journal.db");
    const Status verified = journal->verify_chain();
    EXPECT_TRUE(absl::IsDataLoss(verified));
    EXPECT_THAT(message_of(verified), HasSubstr(damage.message));
    uint64_t visited = 0;
    EXPECT_EQ(journal->replay(0, [&](const JournalRecord&) { return ++visited, ok_status(); }),
              verified);
    EXPECT_EQ(visited, damage.good);
  }
}

TEST(JournalTest, RefusesADamagedEndAndASnapshotAheadOfIt) {
  const TemporaryFolder folder;
  const std::string path = folder / "journal.db";
  make_journal(path, 5);
  EXPECT_TRUE(absl::IsDataLoss(
      open_or_fail(path)->replay(6, [](const JournalRecord&) { return ok_status(); })));
  run_sql(path, "UPDATE entries SET chain = x'0102' WHERE sequence = 5");
  EXPECT_TRUE(absl::IsDataLoss(open_journal(path).status()));
  run_sql(path, "DELETE FROM entries; INSERT INTO entries VALUES (-4, 0, 'k', x'', '', x'')");
  EXPECT_TRUE(absl::IsDataLoss(open_journal(path).status()));
}

}  // namespace
}  // namespace tessera::store
