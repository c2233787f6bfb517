#include "tessera/data/tokenizer.h"

#include "data/data_test_files.h"
#include "data/piece_trie.h"
#include "data/text_normalizer.h"

namespace tessera::data {
namespace {

using testing::HasSubstr;

TEST(ByteTokenizer, RoundTripsEveryByte) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(tokenizer->kind(), "bytes");
  EXPECT_EQ(tokenizer->vocab(), 256u);
  EXPECT_EQ(tokenizer->end_of_document(), 0u);
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::vector<uint32_t> ids = tokenizer->encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (uint32_t byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[byte], byte);
  EXPECT_EQ(*tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->encode(""), std::vector<uint32_t>{});
  EXPECT_THAT(message_of(tokenizer->decode({65, 256}).status()),
              HasSubstr("token 256 is outside the vocabulary of 256"));
}

TEST(PieceTrie, FindsKeysAndTheirPrefixes) {
  const PieceTrie trie({{"abc", 7}, {"a", 0}, {"ab\xff", 3}, {"b", 1}});
  EXPECT_FALSE(trie.empty());
  EXPECT_EQ(trie.longest_prefix("abcd"), 3u);
  EXPECT_EQ(trie.longest_prefix("abd"), 1u);
  EXPECT_EQ(trie.longest_prefix("ab\xff"), 3u);
  EXPECT_EQ(trie.longest_prefix("cab"), 0u);
  EXPECT_EQ(trie.longest_prefix(""), 0u);
  PieceTrie::Node node = PieceTrie::kRoot;
  ASSERT_TRUE(trie.step('a', &node));
  EXPECT_EQ(trie.value(node), 0u);
  ASSERT_TRUE(trie.step('b', &node));
  EXPECT_EQ(trie.value(node), std::nullopt);
  EXPECT_FALSE(trie.step('a', &node));
  ASSERT_TRUE(trie.step('c', &node));
  EXPECT_EQ(trie.value(node), 7u);
  EXPECT_TRUE(PieceTrie().empty());
  EXPECT_EQ(PieceTrie().longest_prefix("a"), 0u);
}

// Against the definition (Unicode 15, table 3-7), for every sequence of up to three bytes and the
// edges of four.
TEST(Utf8, CharacterBytes) {
  const auto in = [](int byte, int low, int high) { return byte >= low && byte <= high; };
  for (int a = 0; a < 256; ++a) {
    for (int b = 0x70; b < 0xD0; ++b) {
      for (int c = 0x70; c < 0xD0; c += 3) {
        const std::string text = {static_cast<char>(a), static_cast<char>(b), static_cast<char>(c)};
        size_t expected = 0;
        if (a < 0x80) {
          expected = 1;
        } else if (in(a, 0xC2, 0xDF) && in(b, 0x80, 0xBF)) {
          expected = 2;
        } else if (in(a, 0xE0, 0xEF) && in(c, 0x80, 0xBF) &&
                   in(b, a == 0xE0 ? 0xA0 : 0x80, a == 0xED ? 0x9F : 0xBF)) {
          expected = 3;
        }
        ASSERT_EQ(utf8_character_bytes(text), expected) << a << " " << b << " " << c;
      }
    }
  }
  EXPECT_EQ(utf8_character_bytes(""), 0u);
  EXPECT_EQ(utf8_character_bytes("\xf0\x90\x80\x80"), 4u);
  EXPECT_EQ(utf8_character_bytes("\xf0\x8f\xbf\xbf"), 0u);
  EXPECT_EQ(utf8_character_bytes("\xf4\x8f\xbf\xbf"), 4u);
  EXPECT_EQ(utf8_character_bytes("\xf4\x90\x80\x80"), 0u);
  EXPECT_EQ(utf8_character_bytes("\xf5\x80\x80\x80"), 0u);
  EXPECT_EQ(utf8_character_bytes("\xf0\x9f\x91"), 0u);
}

}  // namespace
}  // namespace tessera::data
