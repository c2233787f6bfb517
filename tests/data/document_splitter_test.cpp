#include "data/document_splitter.h"

#include <numeric>

#include "data/data_test_files.h"

namespace tessera::data {
namespace {

constexpr uint32_t kVocab = 60000;
constexpr uint32_t kEnd = kVocab - 1;

class DocumentSplitterTest : public DataTest {
 protected:
  // Documents with ids that count up through all of them; the splits that come out.
  struct Splits {
    std::vector<uint32_t> train, validation;
  };
  Splits split(const SplitRule& rule, const std::vector<uint64_t>& lengths, size_t pieces = 3) {
    const std::string folder = path("out");
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    ShardWriter train(folder, "train", 2, kVocab, 1 << 20);
    ShardWriter validation(folder, "validation", 2, kVocab, 1 << 20);
    DocumentSplitter splitter(rule, kEnd, folder, &train, &validation);
    uint32_t next = 0;
    for (const uint64_t length : lengths) {
      std::vector<uint32_t> document(length);
      for (uint32_t& id : document) id = next++ % kEnd;
      for (size_t piece = 0; piece < pieces; ++piece) {
        const auto begin = document.begin() + length * piece / pieces;
        const auto end = document.begin() + length * (piece + 1) / pieces;
        EXPECT_TRUE(splitter.append({begin, end}).ok());
      }
      EXPECT_TRUE(splitter.end_document().ok());
    }
    EXPECT_FALSE(file_exists(folder + "/document.waiting"));
    DatasetManifest manifest;
    manifest.folder = folder;
    return {tokens_of(manifest, *train.finish()), tokens_of(manifest, *validation.finish())};
  }
};

std::vector<uint32_t> range(uint32_t first, uint32_t last) {
  std::vector<uint32_t> ids(last - first);
  for (uint32_t i = 0; i < ids.size(); ++i) ids[i] = (first + i) % kEnd;
  ids.push_back(kEnd);
  return ids;
}

std::vector<uint32_t> operator+(std::vector<uint32_t> a, const std::vector<uint32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(DocumentSplitterTest, FewDocumentsGiveTheirTails) {
  const Splits splits = split({.validation_share = 0.25}, {100, 0, 7, 3});
  EXPECT_EQ(splits.train, range(0, 75) + range(100, 106) + range(107, 110));
  EXPECT_EQ(splits.validation, range(75, 100) + range(106, 107));
}

TEST_F(DocumentSplitterTest, ManyDocumentsGiveEveryNthOne) {
  const Splits splits =
      split({.validation_share = 0.34, .whole_documents = true}, {5, 5, 5, 5, 5, 5, 5});
  EXPECT_EQ(splits.train,
            range(0, 5) + range(5, 10) + range(15, 20) + range(20, 25) + range(30, 35));
  EXPECT_EQ(splits.validation, range(10, 15) + range(25, 30));
}

TEST_F(DocumentSplitterTest, ALongDocumentAlwaysGivesItsTail) {
  constexpr uint32_t kLong = kDocumentTokensInMemory;
  const Splits splits = split({.validation_share = 0.5, .whole_documents = true}, {4, kLong, 4});
  EXPECT_EQ(splits.train, range(0, 4) + range(4, 4 + kLong / 2));
  EXPECT_EQ(splits.validation, range(4 + kLong / 2, 4 + kLong) + range(4 + kLong, 8 + kLong));
}

// The cut lies in the file, at its end, and in memory; the pieces are small and large.
TEST_F(DocumentSplitterTest, LongDocumentsComeThroughTheFileWhole) {
  for (const uint64_t length :
       {uint64_t{65535}, uint64_t{65536}, uint64_t{65537}, uint64_t{300000}}) {
    for (const double share : {0.0, 0.01, 0.2, 0.5}) {
      for (const size_t pieces : {1, 2, 97}) {
        const Splits splits = split({.validation_share = share}, {length, 10}, pieces);
        const auto cut = static_cast<uint32_t>(length - static_cast<uint64_t>(length * share));
        const auto all = static_cast<uint32_t>(length);
        const auto cut2 = static_cast<uint32_t>(all + 10 - static_cast<uint64_t>(10 * share));
        EXPECT_EQ(splits.train, range(0, cut) + range(all, cut2)) << length << " " << share;
        std::vector<uint32_t> tails;
        if (cut < all) tails = tails + range(cut, all);
        if (cut2 < all + 10) tails = tails + range(cut2, all + 10);
        EXPECT_EQ(splits.validation, tails) << length << " " << share;
      }
    }
  }
}

TEST(SplitRule, EveryNth) {
  EXPECT_EQ((SplitRule{.validation_share = 0.05}).every(), 20u);
  EXPECT_EQ((SplitRule{.validation_share = 0.5}).every(), 2u);
  EXPECT_EQ((SplitRule{.validation_share = 0.001}).every(), 1000u);
}

}  // namespace
}  // namespace tessera::data
