#include "tessera/core/object.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tessera/base/crypto.h"

namespace tessera::core {
namespace {

using testing::HasSubstr;

std::string content_of(size_t bytes) {
  std::string content(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(i * 31 + i / 251);
  return content;
}

std::string with_header(uint64_t total, uint32_t chunk, uint32_t count, size_t payload) {
  ByteWriter writer;
  writer.raw("TSO1", 4);
  writer.number(total);
  writer.number(chunk);
  writer.number(count);
  return writer.take() + std::string(payload, 'x');
}

std::string refusal(std::string_view bytes) {
  const auto manifest = ObjectManifest::decode(bytes);
  return manifest.ok() ? "accepted" : message_of(manifest.status());
}

TEST(Object, NamesEveryChunk) {
  for (const size_t bytes : {0, 1, 99, 100, 101, 250, 300}) {
    const std::string content = content_of(bytes);
    const auto manifest = make_manifest(content, 100);
    ASSERT_TRUE(manifest.ok());
    EXPECT_EQ(manifest->total_bytes, bytes);
    ASSERT_EQ(manifest->chunks.size(), (bytes + 99) / 100);
    for (size_t i = 0; i < manifest->chunks.size(); ++i) {
      EXPECT_EQ(manifest->chunks[i], digest_of(content.substr(i * 100, 100)));
    }
    const auto again = ObjectManifest::decode(manifest->encode());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->total_bytes, manifest->total_bytes);
    EXPECT_EQ(again->chunk_bytes, 100u);
    EXPECT_EQ(again->chunks, manifest->chunks);
    EXPECT_EQ(again->digest(), digest_of(manifest->encode()));
  }
}

TEST(Object, RefusesAbsurdChunksAndTooMany) {
  EXPECT_EQ(make_manifest("x", 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(make_manifest("x", kMaxChunkBytes + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(make_manifest(std::string(kMaxChunks, 'a'), 1).ok());
  const auto manifest = make_manifest(std::string(kMaxChunks + 1, 'a'), 1);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(message_of(manifest.status()), HasSubstr("use larger chunks"));
}

TEST(Object, TheLargestManifestIsAChunkItself) {
  EXPECT_LE(make_manifest(std::string(kMaxChunks, 'a'), 1)->encode().size(), kMaxChunkBytes);
}

TEST(Object, RefusesEveryTruncationAndExtension) {
  const std::string bytes = make_manifest(content_of(350), 100)->encode();
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(refusal(std::string_view(bytes).substr(0, length)), "accepted") << length;
  }
  EXPECT_NE(refusal(bytes + '\0'), "accepted");
  EXPECT_NE(refusal(bytes + std::string(32, '\0')), "accepted");
}

// A flipped bit is refused or gives another name: nothing else can be fetched under the old one.
TEST(Object, EveryFlippedBitIsRefusedOrChangesTheName) {
  const auto manifest = make_manifest(content_of(350), 100);
  const std::string bytes = manifest->encode();
  int refused = 0;
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string corrupt = bytes;
    corrupt[bit / 8] = static_cast<char>(corrupt[bit / 8] ^ (1 << (bit % 8)));
    const auto decoded = ObjectManifest::decode(corrupt);
    if (!decoded.ok()) {
      ++refused;
      continue;
    }
    EXPECT_EQ(decoded->encode(), corrupt);
    EXPECT_NE(decoded->digest(), manifest->digest());
  }
  EXPECT_GT(refused, 100);  // magic, count, nearly all of the lengths
}

TEST(Object, RefusalsSayWhatIsWrong) {
  EXPECT_THAT(refusal("TSO1"), HasSubstr("too few"));
  EXPECT_THAT(refusal("nope" + with_header(0, 1, 0, 0).substr(4)), HasSubstr("not with \"TSO1\""));
  EXPECT_EQ(refusal(with_header(0, 1, 0, 0)), "accepted");
  EXPECT_THAT(refusal(with_header(1, 0, 1, 32)), HasSubstr("chunks of 0 bytes"));
  EXPECT_THAT(refusal(with_header(1, kMaxChunkBytes + 1, 1, 32)), HasSubstr("are allowed"));
  EXPECT_THAT(refusal(with_header(10, 1, kMaxChunks + 1, 0)), HasSubstr("at most 30000"));
  EXPECT_THAT(refusal(with_header(10, 5, 3, 96)), HasSubstr("3 chunks, but 10 bytes"));
  EXPECT_THAT(refusal(with_header(UINT64_MAX, 1, UINT32_MAX, 0)), HasSubstr("at most 30000"));
  EXPECT_THAT(refusal(with_header(UINT64_MAX, kMaxChunkBytes, 0, 0)), HasSubstr("0 chunks, but"));
  EXPECT_THAT(refusal(with_header(10, 5, 2, 63)), HasSubstr("63 bytes follow the header"));
}

}  // namespace
}  // namespace tessera::core
