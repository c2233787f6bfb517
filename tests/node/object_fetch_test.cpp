// A newcomer's way to its stage's state: the blob store and replicas at once, some of them dead, hung up or lying.
#include "tessera/node/object_fetch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <numeric>

#include "base/temporary_folder.h"
#include "support/memory_ports.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/node/donated_state.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint64_t kValues = 3 * core::kMaxChunkBytes / sizeof(float) + 1000;  // momentum begins in the middle of a chunk

// What a source does after so many chunks that it gave rightly. Thread-safe: one may be there several times.
class Source final : public ports::BlobLink {
 public:
  enum class End { kNone, kDies, kLies, kMisses };
  Source(std::function<StatusOr<std::string>(const Digest&)> give, End end, int right) : give_(std::move(give)), end_(end), right_(right) {}
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override { return failed_precondition("a source"); }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    std::lock_guard lock(mutex_);
    std::vector<std::string> contents;
    for (const Digest& digest : digests) {
      asked.push_back(digest);
      TESSERA_ASSIGN_OR_RETURN(std::string content, give_(digest));
      if (end_ != End::kNone && right_-- <= 0) {
        if (end_ == End::kDies) return unavailable("it died");
        if (end_ == End::kMisses) return not_found("it moved on");
        return data_loss("a lie");  // what a link says of a content that is not the named one
      }
      contents.push_back(std::move(content));
    }
    return contents;
  }
  std::vector<Digest> asked;

 private:
  const std::function<StatusOr<std::string>(const Digest&)> give_;
  const End end_;
  std::mutex mutex_;
  int right_;
};

class Fetch : public ::testing::TestWithParam<bool> {
 protected:
  Fetch() {
    std::iota(base.begin(), base.end(), 0.0f);
    std::iota(momentum.begin(), momentum.end(), 1e6f);
    bytes = encode_stage_state(base, momentum);
    name = *put_object(store, bytes);
    donated.offer(*list_stage_state(base, momentum), base, momentum);
  }
  Source from_store(Source::End end = Source::End::kNone, int right = 0) {
    return Source([this](const Digest& digest) -> StatusOr<std::string> {
      TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> found, store.get({digest}));
      return found.at(0);
    }, end, right);
  }
  Source donor(Source::End end = Source::End::kNone, int right = 0) {
    return Source([this](const Digest& digest) { return donated.get(digest); }, end, right);
  }
  StatusOr<std::string> run(const std::vector<Source*>& sources) {
    std::vector<ObjectSource> list;
    for (Source* source : sources) list.push_back({source, 1});
    return fetch.run(name, bytes.size(), list, GetParam());
  }

  std::vector<float> base = std::vector<float>(kValues), momentum = std::vector<float>(kValues);
  test::MemoryBlobs store;
  DonatedState donated;
  std::string bytes;
  Digest name;
  ObjectFetch fetch;
};

TEST_P(Fetch, EverySourceGivesTheSameBytes) {
  Source store_source = from_store(), replica = donor();
  EXPECT_TRUE(*run({&store_source}) == bytes);
  EXPECT_TRUE(*run({&replica}) == bytes);
  EXPECT_TRUE(*run({&store_source, &replica, &replica}) == bytes);
  EXPECT_EQ(fetch.manifest().digest(), name);
  EXPECT_EQ(std::accumulate(fetch.chunks_from().begin(), fetch.chunks_from().end(), uint64_t{0}), fetch.manifest().chunks.size());
}

TEST_P(Fetch, ADonorsDeathCostsOneChunk) {
  Source replica = donor(), dying = donor(Source::End::kDies, 3), store_source = from_store();
  EXPECT_TRUE(*run({&store_source, &dying, &replica}) == bytes);
  const size_t chunks = fetch.manifest().chunks.size();
  // The list of chunks is asked for once; what was asked for beyond that is what the dying one was asked for in vain.
  EXPECT_LE(store_source.asked.size() + dying.asked.size() + replica.asked.size(), 1 + chunks + 1);
}

TEST_P(Fetch, ALiarIsLeftOutAndNothingOfItIsTaken) {
  Source liar = donor(Source::End::kLies, 1), store_source = from_store();
  EXPECT_TRUE(*run({&store_source, &liar}) == bytes);
  EXPECT_LE(liar.asked.size(), 3u);
}

TEST_P(Fetch, DonorsThatMovedOnLeaveItToTheStore) {
  Source gone = donor(Source::End::kMisses), store_source = from_store();
  EXPECT_TRUE(*run({&store_source, &gone, &gone}) == bytes);
  EXPECT_EQ(fetch.chunks_from().front(), fetch.manifest().chunks.size());
}

TEST_P(Fetch, TheStoreMayBeDeadIfAReplicaIsNot) {
  Source dead = from_store(Source::End::kDies), replica = donor();
  EXPECT_TRUE(*run({&dead, &replica}) == bytes);
}

TEST_P(Fetch, GoesOnWhereItEndedAfterAFailure) {
  Source store_source = from_store(Source::End::kDies, 4);  // the list of chunks, and three of them
  const StatusOr<std::string> first = run({&store_source});
  ASSERT_FALSE(first.ok());
  EXPECT_TRUE(absl::IsUnavailable(first.status())) << first.status();
  EXPECT_THAT(message_of(first.status()), ::testing::HasSubstr("4 of 7 chunks are missing"));
  Source again = donor();
  EXPECT_TRUE(*run({&again}) == bytes);
  EXPECT_EQ(again.asked.size(), 4u);
}

// A process ends in the middle: the next one asks for what is missing only.
TEST_P(Fetch, ANewProcessGoesOnWhereTheOneBeforeEnded) {
  const test::TemporaryFolder folder;
  const auto run_in_folder = [&](Source& source) {
    return ObjectFetch(folder.path()).run(name, bytes.size(), {{&source, 1}}, GetParam());
  };
  Source dying = from_store(Source::End::kDies, 4);  // the list of chunks, and three of them
  ASSERT_FALSE(run_in_folder(dying).ok());
  const std::string file = folder.path() + "/" + name.hex() + ".part";
  {  // one of them did not get to the disk as it was
    std::fstream damaged(file, std::ios::in | std::ios::out | std::ios::binary);
    damaged.seekp(10);
    damaged << "other";
  }
  Source again = from_store();
  EXPECT_TRUE(*run_in_folder(again) == bytes);
  EXPECT_EQ(again.asked.size(), 1u + 5u);  // of seven chunks two were there
  EXPECT_FALSE(file_exists(file));
}

TEST_P(Fetch, WhatIsThereOfAnotherObjectIsDeleted) {
  const test::TemporaryFolder folder;
  ASSERT_TRUE(write_file_atomic(folder.path() + "/" + digest_of("another").hex() + ".part", "abc").ok());
  ASSERT_TRUE(write_file_atomic(folder.path() + "/miner.json", "{}").ok());
  Source source = from_store(), missing = from_store(Source::End::kDies, 2);
  EXPECT_FALSE(ObjectFetch(folder.path()).run(name, bytes.size(), {{&missing, 1}}, GetParam()).ok());
  EXPECT_FALSE(file_exists(folder.path() + "/" + digest_of("another").hex() + ".part"));
  EXPECT_TRUE(file_exists(folder.path() + "/miner.json"));
  // Where nothing can be kept it comes all the same.
  EXPECT_TRUE(*ObjectFetch(folder.path() + "/none").run(name, bytes.size(), {{&source, 1}}, GetParam()) == bytes);
}

TEST_P(Fetch, AnotherObjectBeginsAnew) {
  Source store_source = from_store(Source::End::kDies, 4);
  ASSERT_FALSE(run({&store_source}).ok());
  bytes = encode_stage_state(momentum, base);
  name = *put_object(store, bytes);
  Source other = from_store();
  EXPECT_TRUE(*run({&other}) == bytes);
}

TEST_P(Fetch, WhatIsNotOfTheRightLengthIsRefusedBeforeItIsFetched) {
  Source store_source = from_store();
  std::vector<ObjectSource> sources = {{&store_source, 1}};
  EXPECT_TRUE(absl::IsDataLoss(fetch.run(name, bytes.size() + 4, sources, GetParam()).status()));
  EXPECT_EQ(store_source.asked.size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(OneByOneAndAtOnce, Fetch, ::testing::Bool());

TEST(DonatedState, NothingIsGivenAfterItIsWithdrawn) {
  const std::vector<float> base(10, 1.0f), momentum(10, 2.0f);
  DonatedState donated;
  const core::ObjectManifest manifest = *list_stage_state(base, momentum);
  EXPECT_TRUE(absl::IsNotFound(donated.get(manifest.digest()).status()));
  donated.offer(manifest, base, momentum);
  EXPECT_EQ(*donated.get(manifest.digest()), manifest.encode());
  EXPECT_EQ(*donated.get(manifest.chunks[0]), encode_stage_state(base, momentum));
  EXPECT_TRUE(absl::IsNotFound(donated.get(Digest{}).status()));
  donated.withdraw();
  EXPECT_TRUE(absl::IsNotFound(donated.get(manifest.chunks[0]).status()));
}

}  // namespace
}  // namespace tessera::node
