// What is in the file when a ledger seals, and who can read it.
#include "tessera/store/ledger_seal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/temporary_folder.h"
#include "tessera/core/events.h"

namespace tessera::test {
namespace {

using store::JournalRecord;
using store::LedgerSeal;
using testing::HasSubstr;

constexpr uint64_t kSecret = 0x1122334455667788;

SealKey key_of(char c) { return SealKey::from_secret(std::string(32, c)); }

template <class T>
JournalRecord record_of(const T& event) {
  return {.sequence = 0, .unix_ms = 5, .kind = T::kName, .body = encode(event), .json = to_json(event)};
}

JournalRecord snapshot_record() {
  return {.sequence = 0, .unix_ms = 5, .kind = std::string(ports::kSnapshotKind), .body = "the whole state", .json = "{}"};
}

core::RunCreated run() {
  core::RunCreated created;
  created.run_id = "0123456789abcdef";
  created.secret = kSecret;
  created.stage_values = {1, 2};
  return created;
}

class LedgerSealTest : public testing::Test {
 protected:
  std::unique_ptr<store::Journal> open(char key) {
    auto inner = store::open_journal(path_);
    EXPECT_TRUE(inner.ok()) << inner.status();
    return store::sealed_journal(*std::move(inner), key_of(key));
  }
  // The file as everybody sees it.
  std::vector<JournalRecord> as_written() {
    std::vector<JournalRecord> records;
    const auto journal = store::open_journal(path_, true);
    EXPECT_TRUE(journal.ok());
    EXPECT_TRUE((*journal)->replay(0, [&](const JournalRecord& record) {
      records.push_back(record);
      return ok_status();
    }).ok());
    return records;
  }
  void write() {
    std::vector<JournalRecord> records = {record_of(run()), snapshot_record(), record_of(core::Ticked{}),
                                          record_of(core::SecretUnsealed{std::string(ports::kSnapshotKind), 0, {}})};
    const std::vector<JournalRecord> before = records;
    ASSERT_TRUE(open('k')->append(&records).ok());
    for (size_t i = 0; i < records.size(); ++i) {
      EXPECT_EQ(records[i].sequence, i + 1);
      EXPECT_EQ(records[i].body, before[i].body);  // the caller's own are as they were
    }
  }
  TemporaryFolder folder_;
  const std::string path_ = folder_ / "journal.sqlite";
};

TEST_F(LedgerSealTest, NothingSecretIsInTheFile) {
  write();
  const std::vector<JournalRecord> records = as_written();
  ASSERT_EQ(records.size(), 4u);
  const std::string secret_bytes(reinterpret_cast<const char*>(&kSecret), 8);
  for (const JournalRecord& record : records) {
    EXPECT_EQ(record.body.find(secret_bytes), std::string::npos);
    EXPECT_EQ(record.body.find("the whole state"), std::string::npos);
    EXPECT_EQ(record.json.find(std::to_string(kSecret)), std::string::npos);
  }
  core::RunCreated seen;
  ASSERT_TRUE(decode(records[0].body, &seen));
  EXPECT_EQ(seen.secret, 0u);
  EXPECT_EQ(seen.stage_values, run().stage_values);  // all else is public
  EXPECT_EQ(records[1].json, "{\"sealed\":true,\"id\":0}");
  EXPECT_EQ(records[2].body, "");
}

TEST_F(LedgerSealTest, TheOrchestratorReadsWhatItWrote) {
  write();
  const auto journal = open('k');
  std::vector<JournalRecord> records;
  ASSERT_TRUE(journal->replay(0, [&](const JournalRecord& record) {
    records.push_back(record);
    return ok_status();
  }).ok());
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(records[0].body, encode(run()));
  EXPECT_EQ(records[0].json, to_json(run()));
  const auto snapshot = journal->newest(ports::kSnapshotKind, journal->last_sequence());
  ASSERT_TRUE(snapshot.ok() && *snapshot);
  EXPECT_EQ((*snapshot)->body, "the whole state");
  EXPECT_TRUE(journal->verify_chain().ok());
}

TEST_F(LedgerSealTest, AnotherKeyIsRefusedWithWhatToDo) {
  write();
  const Status status = open('x')->replay(0, [](const JournalRecord&) { return ok_status(); });
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(message_of(status), HasSubstr("put back the ledger.key"));
}

TEST_F(LedgerSealTest, APublishedKeyOpensItsKindAndNoOther) {
  write();
  std::vector<JournalRecord> records = as_written();
  LedgerSeal view(std::nullopt);
  EXPECT_EQ(*view.open(&records[0]), LedgerSeal::Opened::kStillSealed);
  EXPECT_EQ(*view.open(&records[1]), LedgerSeal::Opened::kStillSealed);
  for (const JournalRecord& record : records) view.learn(record);
  EXPECT_EQ(*view.open(&records[0]), LedgerSeal::Opened::kStillSealed);
  EXPECT_EQ(*view.open(&records[1]), LedgerSeal::Opened::kOpened);
  EXPECT_EQ(records[1].body, "the whole state");
  EXPECT_EQ(*view.open(&records[2]), LedgerSeal::Opened::kPlain);
}

TEST_F(LedgerSealTest, WhoCommittedToWhichShardIsReadableWhenItsKeyIsPublished) {
  const core::ShardCommitted mine{.miner = 3, .commit = {.target = 2, .shard = 77, .object = {}}};
  core::ShardCommitted later = mine;
  later.commit.target = 3;
  std::vector<JournalRecord> records = {
      record_of(mine), record_of(later),
      record_of(core::SecretUnsealed{core::ShardCommitted::kName, *core::seal_id(core::Event(mine)), {}})};
  ASSERT_TRUE(open('k')->append(&records).ok());
  std::vector<JournalRecord> written = as_written();
  LedgerSeal view(std::nullopt);
  for (const JournalRecord& record : written) view.learn(record);
  EXPECT_EQ(*view.open(&written[0]), LedgerSeal::Opened::kOpened);
  EXPECT_EQ(written[0].body, encode(mine));
  EXPECT_EQ(written[0].json, to_json(mine));
  EXPECT_EQ(*view.open(&written[1]), LedgerSeal::Opened::kStillSealed);
}

TEST_F(LedgerSealTest, AJournalFromBeforeSealingIsReadAsItIs) {
  {
    auto plain = store::open_journal(path_);
    ASSERT_TRUE(plain.ok());
    std::vector<JournalRecord> records = {record_of(run())};
    ASSERT_TRUE((*plain)->append(&records).ok());
  }
  ASSERT_TRUE(open('k')->replay(0, [&](const JournalRecord& record) {
    EXPECT_EQ(record.body, encode(run()));
    return ok_status();
  }).ok());
}

TEST(LedgerSeal, EveryChangedByteIsFound) {
  const LedgerSeal seal(key_of('k'));
  JournalRecord record = snapshot_record();
  ASSERT_TRUE(seal.seal(&record).ok());
  for (size_t i = 4; i < record.body.size(); ++i) {
    JournalRecord changed = record;
    changed.body[i] = static_cast<char>(changed.body[i] ^ 4);
    EXPECT_TRUE(absl::IsDataLoss(seal.open(&changed).status())) << i;
  }
}

}  // namespace
}  // namespace tessera::test
