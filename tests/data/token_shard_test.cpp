#include "tessera/data/token_shard.h"

#include "data/data_test_files.h"
#include "data/shard_writer.h"
#include "tessera/base/bytes.h"
#include "tessera/base/crypto.h"

namespace tessera::data {
namespace {

using testing::HasSubstr;

using TokenShardTest = DataTest;

std::string llm_c_shard(int32_t version, int32_t tokens, const std::vector<uint16_t>& ids) {
  ByteWriter writer;
  writer.number(int32_t{20240520});
  writer.number(version);
  writer.number(tokens);
  for (int i = 3; i < 256; ++i) writer.number(int32_t{0});
  for (const uint16_t id : ids) writer.number(id);
  return writer.take();
}

std::string refusal(const std::string& path) {
  const auto reader = TokenShardReader::open(path);
  return reader.ok() ? "no error" : message_of(reader.status());
}

TEST_F(TokenShardTest, RoundTripsBothWidthsOverSeveralShards) {
  for (const uint32_t vocab : {65536u, 65537u}) {
    const uint32_t token_bytes = vocab <= 65536 ? 2 : 4;
    const std::string folder = path(std::to_string(vocab));
    ASSERT_TRUE(make_directories(folder).ok());
    std::vector<uint32_t> ids(2500);
    for (uint32_t i = 0; i < ids.size(); ++i) ids[i] = vocab - 1 - i * 7;
    ShardWriter writer(folder, "train", token_bytes, vocab, 1000);
    ASSERT_TRUE(writer.append(ids.data(), 999).ok());
    ASSERT_TRUE(writer.append(ids.data() + 999, ids.size() - 999).ok());
    EXPECT_EQ(writer.tokens(), ids.size());
    const auto shards = writer.finish();
    ASSERT_TRUE(shards.ok()) << shards.status();
    ASSERT_EQ(shards->size(), 3u);
    EXPECT_EQ((*shards)[2].file, "train-00002.tok");
    EXPECT_EQ((*shards)[2].tokens, 500u);
    std::vector<uint32_t> back;
    for (const core::TokenShard& shard : *shards) {
      const auto content = read_file(folder + "/" + shard.file);
      EXPECT_EQ(content->size(), shard.bytes);
      EXPECT_EQ(digest_of(*content), shard.digest);
      const auto reader = TokenShardReader::open(folder + "/" + shard.file);
      ASSERT_TRUE(reader.ok()) << reader.status();
      EXPECT_EQ((*reader)->info().format, ShardInfo::Format::kTessera);
      EXPECT_EQ((*reader)->info().vocab, vocab);
      EXPECT_EQ((*reader)->info().token_bytes, token_bytes);
      const auto part = (*reader)->read(0, shard.tokens);
      back.insert(back.end(), part->begin(), part->end());
    }
    EXPECT_EQ(back, ids);
  }
}

TEST_F(TokenShardTest, HeaderIsAsDocumented) {
  EXPECT_EQ(to_hex(encode_shard_header(2, 256, 0x0102030405)),
            "5453544b"
            "01000000"
            "02000000"
            "00010000"
            "0504030201000000"
            "0000000000000000");
}

TEST_F(TokenShardTest, ReadsAnyRangeAndNothingPastTheEnd) {
  write("a.tok", encode_shard_header(2, 256, 3) + std::string("\1\0\2\0\3\0", 6));
  const auto reader = TokenShardReader::open(path("a.tok"));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(*(*reader)->read(1, 2), (std::vector<uint32_t>{2, 3}));
  EXPECT_EQ((*reader)->read(3, 0)->size(), 0u);
  for (const auto& [first, count] :
       std::vector<std::pair<uint64_t, uint64_t>>{{3, 1}, {0, 4}, {4, 0}, {1, UINT64_MAX}}) {
    EXPECT_EQ((*reader)->read(first, count).status().code(), absl::StatusCode::kOutOfRange);
  }
}

TEST_F(TokenShardTest, RefusesIdsOutsideTheVocabulary) {
  write("a.tok", encode_shard_header(2, 100, 2) + std::string("\x63\0\x64\0", 4));
  const auto reader = TokenShardReader::open(path("a.tok"));
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE((*reader)->read(0, 1).ok());
  const auto ids = (*reader)->read(0, 2);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(message_of(ids.status()), HasSubstr("token 100 is outside the vocabulary of 100"));
}

TEST_F(TokenShardTest, ReportsAFileShortenedWhileOpen) {
  write("a.tok", encode_shard_header(2, 256, 1000) + std::string(2000, '\1'));
  const auto reader = TokenShardReader::open(path("a.tok"));
  ASSERT_TRUE(reader.ok());
  std::filesystem::resize_file(path("a.tok"), 500);
  EXPECT_THAT(message_of((*reader)->read(0, 1000).status()),
              HasSubstr("shortened while it was open"));
}

TEST_F(TokenShardTest, RefusesEveryTruncation) {
  const std::string shard = encode_shard_header(4, 70000, 5) + std::string(20, '\0');
  for (size_t bytes = 0; bytes < shard.size(); ++bytes) {
    EXPECT_FALSE(inspect_shard(shard.substr(0, bytes), bytes, "a.tok").ok()) << bytes;
  }
  EXPECT_TRUE(inspect_shard(shard, shard.size(), "a.tok").ok());
  EXPECT_FALSE(inspect_shard(shard, shard.size() + 4, "a.tok").ok());
}

// A flipped header bit is refused, or is the vocabulary, which the manifest knows too.
TEST_F(TokenShardTest, FlippedHeaderBitsAreRefused) {
  const std::string shard = encode_shard_header(2, 1000, 5) + std::string(10, '\0');
  for (size_t bit = 0; bit < 32 * 8; ++bit) {
    std::string corrupt = shard;
    corrupt[bit / 8] = static_cast<char>(corrupt[bit / 8] ^ (1 << bit % 8));
    const auto info = inspect_shard(corrupt, corrupt.size(), "a.tok");
    if (info.ok()) {
      EXPECT_TRUE(bit / 8 >= 12 && bit / 8 < 16) << bit;
      EXPECT_NE(info->vocab, 1000u);
    }
  }
}

TEST_F(TokenShardTest, RefusalsSayWhatIsWrong) {
  const std::string data(10, '\0');
  std::string header = encode_shard_header(2, 1000, 5);
  EXPECT_THAT(refusal(write("magic.tok", "NOPE" + data)),
              HasSubstr("starts with 4e4f5045, neither"));
  EXPECT_THAT(refusal(write("short.tok", "TSTK")), HasSubstr("less than the header"));
  EXPECT_THAT(
      refusal(write("size.tok", header + data.substr(1))),
      HasSubstr("its header says 5 tokens of 2 bytes after a header of 32, but the file has 41"));
  header[4] = 9;
  EXPECT_THAT(refusal(write("version.tok", header + data)), HasSubstr("version 9"));
  EXPECT_THAT(refusal(write("width.tok", encode_shard_header(3, 9, 0))),
              HasSubstr("3 bytes a token"));
  EXPECT_THAT(refusal(write("vocab.tok", encode_shard_header(2, 65537, 0))),
              HasSubstr("a vocabulary of 65537"));
  EXPECT_THAT(refusal(write("absurd.tok", encode_shard_header(2, 9, UINT64_MAX / 2 + 6) + data)),
              HasSubstr("truncated or corrupt"));
  EXPECT_THAT(refusal(path("missing.tok")), HasSubstr("No such file"));
  EXPECT_THAT(refusal(root_), HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo(path("pipe.tok").c_str(), 0600), 0);
  EXPECT_THAT(refusal(path("pipe.tok")), HasSubstr("not a regular file"));
}

TEST_F(TokenShardTest, ReadsLlmCShards) {
  const auto reader = TokenShardReader::open(write("a.bin", llm_c_shard(1, 3, {5, 50256, 7})));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->info().format, ShardInfo::Format::kLlmC);
  EXPECT_EQ((*reader)->info().vocab, 0u);
  EXPECT_EQ(*(*reader)->read(0, 3), (std::vector<uint32_t>{5, 50256, 7}));
  EXPECT_THAT(refusal(write("b.bin", llm_c_shard(7, 3, {1, 2, 3}))), HasSubstr("version 7"));
  EXPECT_THAT(refusal(write("c.bin", llm_c_shard(1, 4, {1, 2, 3}))), HasSubstr("says 4 tokens"));
  EXPECT_THAT(refusal(write("d.bin", llm_c_shard(1, -1, {}))), HasSubstr("-1 tokens"));
  EXPECT_THAT(refusal(write("e.bin", llm_c_shard(1, 0, {}).substr(0, 1000))),
              HasSubstr("llm.c shard (1024)"));
}

TEST_F(TokenShardTest, ReadsRawShardsOnlyUnderTheirName) {
  const std::string raw("\x05\x00\x50\xc4", 4);
  const auto reader = TokenShardReader::open(write("a.bin", raw));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->info().format, ShardInfo::Format::kRaw);
  EXPECT_EQ(*(*reader)->read(0, 2), (std::vector<uint32_t>{5, 50256}));
  EXPECT_THAT(refusal(write("a.dat", raw)), HasSubstr("must be named .bin"));
  EXPECT_THAT(refusal(write("odd.bin", "abc")), HasSubstr("no whole number"));
  EXPECT_THAT(refusal(write("empty.bin", "")), HasSubstr("no whole number"));
}

}  // namespace
}  // namespace tessera::data
