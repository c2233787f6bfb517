#include "tessera/node/objects.h"

#include <gtest/gtest.h>

#include "support/memory_ports.h"

namespace tessera::node {
namespace {

TEST(Objects, ComeBackWholeAndInParts) {
  test::MemoryBlobs blobs;
  for (const size_t size : {0, 1, 99, 100, 101, 1000}) {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 7);
    const StatusOr<Digest> name = put_object(blobs, content, 100);
    ASSERT_TRUE(name.ok());
    EXPECT_EQ(*get_object(blobs, *name, 0), content);
    const auto manifest = get_manifest(blobs, *name);
    ASSERT_TRUE(manifest.ok());
    EXPECT_EQ(manifest->digest(), *name);
    for (uint64_t first = 0; first <= manifest->chunks.size(); ++first) {
      for (uint64_t count = 0; first + count <= manifest->chunks.size(); ++count) {
        EXPECT_EQ(*get_chunks(blobs, *manifest, first, count),
                  content.substr(std::min(first * 100, size), count * 100));
      }
    }
    EXPECT_TRUE(
        absl::IsOutOfRange(get_chunks(blobs, *manifest, 0, manifest->chunks.size() + 1).status()));
    EXPECT_TRUE(absl::IsOutOfRange(get_chunks(blobs, *manifest, UINT64_MAX, 2).status()));
  }
}

TEST(Objects, AnotherLengthThanExpectedIsRefused) {
  test::MemoryBlobs blobs;
  const Digest name = *put_object(blobs, "twelve bytes", 5);
  EXPECT_TRUE(get_object(blobs, name, 12).ok());
  EXPECT_TRUE(absl::IsDataLoss(get_object(blobs, name, 13).status()));
  EXPECT_TRUE(absl::IsDataLoss(get_object(blobs, name, 0, 11).status()));
  EXPECT_TRUE(absl::IsNotFound(get_object(blobs, digest_of("nothing"), 0).status()));
  blobs.forget(digest_of("es"));
  EXPECT_TRUE(absl::IsNotFound(get_object(blobs, name, 12).status()));
}

// The chunks are what the manifest names, but not of the lengths it promises.
TEST(Objects, ChunksOfOtherLengthsAreRefused) {
  test::MemoryBlobs blobs;
  core::ObjectManifest manifest;
  manifest.total_bytes = 8;
  manifest.chunk_bytes = 4;
  manifest.chunks = {*blobs.put({"abcde"})->begin(), *blobs.put({"fgh"})->begin()};
  ASSERT_TRUE(blobs.put({manifest.encode()}).ok());
  EXPECT_TRUE(absl::IsDataLoss(get_object(blobs, manifest.digest(), 8).status()));
  const Digest not_a_manifest = *blobs.put({"abc"})->begin();
  EXPECT_FALSE(get_object(blobs, not_a_manifest, 0).ok());
}

TEST(Objects, AreCheckedWithoutBeingKept) {
  test::MemoryBlobs blobs;
  const Digest name = *put_object(blobs, "twelve bytes", 5);
  EXPECT_TRUE(check_object(blobs, name, 12).ok());
  EXPECT_TRUE(absl::IsDataLoss(check_object(blobs, name, 13)));
  blobs.forget(digest_of("es"));
  EXPECT_TRUE(absl::IsNotFound(check_object(blobs, name, 12)));
}

TEST(LocalState, IsStoredUnderTheNameOfItsBytes) {
  test::MemoryBlobs blobs;
  core::LocalState state{.masters = std::vector<float>(core::kMaxChunkBytes / 4 + 3, 1.5f)};
  state.first_moment = state.second_moment = state.gradient = state.masters;
  state.gradient_microbatches = 2;
  const StatusOr<Digest> name = put_local_state(blobs, state);
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(*name, *put_object(blobs, encode_local_state(state)));
  EXPECT_EQ(get_local_state(blobs, *name, state.masters.size())->gradient, state.gradient);
}

// One blob, named thirty thousand times, would be 29 GiB.
TEST(LocalState, ALongerOneThanTheStageCanHaveIsNotFetched) {
  test::MemoryBlobs blobs;
  core::ObjectManifest manifest;
  manifest.chunks.assign(core::kMaxChunks, digest_of("not there"));
  manifest.total_bytes = uint64_t{core::kMaxChunks} * manifest.chunk_bytes;
  ASSERT_TRUE(blobs.put({manifest.encode()}).ok());
  EXPECT_TRUE(absl::IsDataLoss(get_local_state(blobs, manifest.digest(), 10).status()));
  core::LocalState state{.masters = {1, 2}, .first_moment = {3, 4}, .second_moment = {5, 6}};
  const Digest name = *put_object(blobs, encode_local_state(state));
  EXPECT_EQ(get_local_state(blobs, name, 2)->masters, state.masters);
  EXPECT_TRUE(absl::IsDataLoss(get_local_state(blobs, name, 3).status()));
  state.gradient_microbatches = 1;
  EXPECT_TRUE(absl::IsDataLoss(get_local_state(blobs, *put_object(blobs, encode_local_state(state)), 2).status()));
}

TEST(StageState, IsNamedAsItIsStored) {
  test::MemoryBlobs blobs;
  const std::vector<float> base{1, -2, 3.5f}, momentum{0, 1e-30f, -0.0f};
  EXPECT_EQ(*name_stage_state(base, momentum),
            *put_object(blobs, encode_stage_state(base, momentum)));
  EXPECT_NE(*name_stage_state(momentum, base), *name_stage_state(base, momentum));
  EXPECT_EQ(values_of(bytes_of(base)), base);
}

TEST(LocalState, EveryTruncationIsRefused) {
  const core::LocalState state{{1, 2}, {3, 4}, {5, 6}, 7, {8, 9}, 1, {}};
  const core::LocalState whole{{1, 2}, {3, 4}, {5, 6}, 7, {}, 0, {}};
  const core::LocalState residual{{1, 2}, {3, 4}, {5, 6}, 7, {8, 9}, 1, {0.5f, -0.5f}};
  for (const core::LocalState& sent : {state, whole, residual}) {
    const std::string bytes = encode_local_state(sent);
    const StatusOr<core::LocalState> back = decode_local_state(bytes);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->masters, sent.masters);
    EXPECT_EQ(back->first_moment, sent.first_moment);
    EXPECT_EQ(back->second_moment, sent.second_moment);
    EXPECT_EQ(back->optimizer_steps, 7u);
    EXPECT_EQ(back->gradient, sent.gradient);
    EXPECT_EQ(back->gradient_microbatches, sent.gradient_microbatches);
    EXPECT_EQ(back->residual, sent.residual);
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_TRUE(absl::IsDataLoss(decode_local_state(bytes.substr(0, length)).status()));
    }
    EXPECT_FALSE(decode_local_state(bytes + "1234").ok());
    for (size_t at = 0; at < 32; ++at) {  // magic, version and the counts
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ 0x80);
      EXPECT_FALSE(decode_local_state(changed).ok()) << at;
    }
  }
}

}  // namespace
}  // namespace tessera::node
