// Pages of a ledger beside its writer.
#include "tessera/store/ledger_reader.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace tessera::store {
namespace {

class LedgerPages : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    auto journal = open_journal((folder_ / "journal.sqlite").string());
    ASSERT_TRUE(journal.ok());
    journal_ = *std::move(journal);
    auto reader = LedgerReader::open((folder_ / "journal.sqlite").string());
    ASSERT_TRUE(reader.ok());
    reader_ = *std::move(reader);
  }
  void TearDown() override {
    journal_.reset();
    reader_.reset();
    std::filesystem::remove_all(folder_);
  }
  void append(const std::string& body) {
    std::vector<JournalRecord> records{{0, 1000, "kind", body, "{}"}};
    ASSERT_TRUE(journal_->append(&records).ok());
  }

  std::filesystem::path folder_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<LedgerReader> reader_;
};

TEST_F(LedgerPages, FollowEachOtherAndTheWriter) {
  const std::string body(LedgerReader::kPageBytes / 3, 'b');
  for (int i = 0; i < 7; ++i) append(body);
  uint64_t after = 0;
  std::vector<size_t> sizes;
  Digest chain;
  while (true) {
    const auto page = reader_->read(after, 0);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_EQ(page->chain_before, chain);
    EXPECT_EQ(page->last_sequence, 7u);
    if (page->records.empty()) break;
    for (const JournalRecord& record : page->records) {
      EXPECT_EQ(record.sequence, ++after);
      EXPECT_EQ(record.body, body);
      chain = next_chain(chain, record, record.sequence);
    }
    sizes.push_back(page->records.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{3, 3, 1}));
  append("one more");
  const auto page = reader_->read(after, 0);
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->records.size(), 1u);
  EXPECT_EQ(page->records[0].body, "one more");
}

TEST_F(LedgerPages, CutWhatIsLargerThanOne) {
  std::string body(2 * LedgerReader::kPageBytes + 5, 'x');
  body.back() = 'y';
  append(body);
  append("after it");
  std::string got;
  while (got.size() < body.size()) {
    const auto page = reader_->read(0, got.size());
    ASSERT_TRUE(page.ok());
    EXPECT_EQ(page->body_bytes, body.size());
    got += page->records.at(0).body;
    // Its last part may share a page with what follows.
    EXPECT_EQ(page->records.size(), got.size() == body.size() ? 2u : 1u);
  }
  EXPECT_EQ(got, body);
  EXPECT_TRUE(absl::IsOutOfRange(reader_->read(0, body.size() + 1).status()));
}

TEST_F(LedgerPages, RefuseWhatIsNotThere) {
  append("one");
  EXPECT_TRUE(absl::IsOutOfRange(reader_->read(2, 0).status()));
  EXPECT_TRUE(reader_->read(1, 0).ok());
}

}  // namespace
}  // namespace tessera::store
