#include "tessera/node/merge_reduce.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <map>
#include <memory>
#include <mutex>

#include "node/merge_fixture.h"
#include "support/memory_ports.h"
#include "support/whole_upload.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

using test::upload_delta;

class MergeReduceTest : public testing::Test {
 protected:
  void put_uploads() {
    uploads_.clear();
    values_.clear();
    for (const float start : {1.0f, -3.0f, 100.0f}) {
      values_.push_back(delta_of(start));
      const std::vector<float> zeros(kValues, 0.0f);
      const auto upload = upload_delta(blobs_, merge_, values_.back(), zeros, {});
      uploads_.push_back({upload->object, weights_[uploads_.size()]});
    }
  }
  ReduceInputs inputs() const {
    return {.uploads = uploads_, .stage_values = kValues, .merge = merge_, .rounding_key = 5};
  }
  static core::ShardTask task(uint64_t first, uint64_t count, const std::string& owner = "a") {
    return {.first_block = first, .block_count = count, .token = digest_of(owner)};
  }
  StatusOr<Reduction> reduce(uint64_t first, uint64_t count) { return reduce_shard(blobs_, inputs(), task(first, count)); }
  std::vector<Digest> unreadable(uint64_t first, uint64_t count) {
    return unreadable_uploads(blobs_, inputs(), task(first, count));
  }
  // The values of a whole reduction, read back as a replica would.
  std::vector<float> reduced() {
    const auto reduction = reduce(0, kBlocks);
    EXPECT_TRUE(reduction.ok()) << reduction.status();
    KeptBlobs link(blobs_);
    return *fetch_mean(link, merge_, kValues, {{0, kBlocks, reduction->result, {{reduction->object, digest_of("a")}}}});
  }

  const float weights_[3] = {0.25f, 0.5f, 0.25f};
  core::MergeSpec merge_ = merge_of(Codec::kFp32, Codec::kFp32);
  test::MemoryBlobs blobs_;
  std::vector<core::UploadRef> uploads_;
  std::vector<std::vector<float>> values_;
};

TEST_F(MergeReduceTest, IsTheWeightedSumInTheManifestsOrder) {
  put_uploads();
  const std::vector<float> sum = reduced();
  for (size_t i = 0; i < kValues; ++i) {
    float expected = 0;
    for (size_t u = 0; u < 3; ++u) expected += weights_[u] * values_[u][i];
    ASSERT_EQ(sum[i], expected);
  }
}

TEST_F(MergeReduceTest, OwnersAgreeOnEveryRangeAndShareNoName) {
  for (const Codec format : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
    merge_ = merge_of(format, format);
    put_uploads();
    for (uint64_t first = 0; first < kBlocks; ++first) {
      for (uint64_t count = 1; first + count <= kBlocks; ++count) {
        const auto one = reduce(first, count);
        ReduceInputs overlapped = inputs();
        overlapped.overlap = true;
        const auto other = reduce_shard(blobs_, overlapped, task(first, count, "b"));
        ASSERT_TRUE(one.ok() && other.ok()) << one.status();
        EXPECT_EQ(one->result, other->result);
        EXPECT_EQ(encode(one->measures), encode(other->measures));
        EXPECT_NE(one->object, other->object);
      }
    }
  }
}

// Shards are cut by who takes part; what a block becomes must not depend on it.
TEST_F(MergeReduceTest, APieceOfTheStageIsReducedLikeTheWhole) {
  merge_ = merge_of(Codec::kInt8, Codec::kInt8);
  put_uploads();
  const std::vector<float> whole = reduced();
  std::vector<core::ShardResult> results;
  for (const auto& [first, count] : std::vector<std::pair<uint64_t, uint64_t>>{{0, 1}, {1, 3}, {4, 2}}) {
    const auto shard = reduce(first, count);
    results.push_back({first, count, shard->result, {{shard->object, digest_of("a")}}});
  }
  KeptBlobs link(blobs_);
  EXPECT_EQ(*fetch_mean(link, merge_, kValues, results), whole);
}

TEST_F(MergeReduceTest, MeasuresNormsAndCosinesOfWholeUploads) {
  put_uploads();
  std::vector<core::UploadMeasure> sums(3);
  for (uint64_t block = 0; block < kBlocks; ++block) {
    const auto shard = reduce(block, 1);
    for (size_t k = 0; k < 3; ++k) sums[k].add(shard->measures[k]);
  }
  for (size_t k = 0; k < 3; ++k) {
    double energy = 0;
    for (const float value : values_[k]) energy += double{value} * value;
    EXPECT_NEAR(sums[k].energy, energy, 1e-9 * energy);
    EXPECT_LE(std::abs(sums[k].alignment), energy);
  }
  EXPECT_GT(sums[0].alignment / sums[0].energy, 0.9);  // all of them point up
}

TEST_F(MergeReduceTest, AFlippedSignShowsAndScalingDoesNotHideIt) {
  put_uploads();
  std::vector<float> flipped = delta_of(2.0f);
  for (float& value : flipped) value *= -1000;
  uploads_[1].object = upload_delta(blobs_, merge_, flipped, std::vector<float>(kValues, 0.0f), {})->object;
  const auto shard = reduce(0, kBlocks);
  EXPECT_LT(shard->measures[1].alignment / shard->measures[1].energy, -0.9);
}

TEST_F(MergeReduceTest, AnUploadThatIsNotFiniteIsMarkedAndTouchesNoOther) {
  for (const Codec format : {Codec::kFp32, Codec::kInt8}) {
    merge_ = merge_of(format, Codec::kInt8);
    put_uploads();
    std::vector<float> bad = delta_of(2.0f);
    bad[300] = std::nanf("");
    uploads_[1].object = upload_delta(blobs_, merge_, bad, std::vector<float>(kValues, 0.0f), {})->object;
    const auto shard = reduce(0, kBlocks);
    EXPECT_FALSE(shard->measures[1].is_finite());
    EXPECT_TRUE(shard->measures[0].is_finite());
    EXPECT_GT(shard->measures[0].alignment / shard->measures[0].energy, 0.8);
  }
}

TEST_F(MergeReduceTest, ATrimmedMeanLeavesTheFarthestOut) {
  merge_.trim_share = 0.34;
  put_uploads();
  const std::vector<float> middle = reduced();
  for (size_t i = 0; i < kValues; ++i) ASSERT_EQ(middle[i], values_[0][i]);
}

TEST_F(MergeReduceTest, NeverAMeanOfFewer) {
  put_uploads();
  blobs_.forget(uploads_[1].object);
  EXPECT_TRUE(absl::IsNotFound(reduce(0, kBlocks).status()));
  EXPECT_EQ(unreadable(0, kBlocks), (std::vector<Digest>{uploads_[1].object}));
  ReduceInputs none = inputs();
  none.uploads.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(reduce_shard(blobs_, none, task(0, 1)).status()));
}

TEST_F(MergeReduceTest, OnlyTheBlocksOfTheShardAreNeeded) {
  put_uploads();
  const Digest last_chunk = get_manifest(blobs_, uploads_[2].object)->chunks.back();
  blobs_.forget(last_chunk);
  EXPECT_TRUE(reduce(0, 5).ok());
  EXPECT_TRUE(unreadable(0, 5).empty());
  EXPECT_FALSE(reduce(4, 2).ok());
  EXPECT_EQ(unreadable(4, 2), (std::vector<Digest>{uploads_[2].object}));
}

TEST_F(MergeReduceTest, UploadsOfAnotherSizeOrFormatAreRefused) {
  put_uploads();
  const std::vector<float> values = delta_of(0), zeros(kValues, 0.0f);
  uploads_[0].object = upload_delta(blobs_, merge_of(Codec::kInt8, Codec::kFp32), values, zeros, {})->object;
  const Status status = reduce(0, 1).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(message_of(status), testing::HasSubstr("in chunks of 260; this stage has"));
  EXPECT_EQ(unreadable(0, 1), (std::vector<Digest>{uploads_[0].object}));
  EXPECT_TRUE(absl::IsOutOfRange(reduce(kBlocks, 1).status()));
}

// Whoever has the snapshot can tell an honest upload: it is off by no more than its rounding.
TEST_F(MergeReduceTest, AnUploadIsReadBackWithinWhatItsFormatRoundsOff) {
  const std::vector<float> values = delta_of(0.5f), zeros(kValues, 0.0f);
  for (const auto& [format, most] : {std::pair{Codec::kFp32, 0.0}, {Codec::kInt8, 0.02}, {Codec::kInt4, 0.3}}) {
    const core::MergeSpec merge = merge_of(format, Codec::kFp32);
    const auto upload = upload_delta(blobs_, merge, values, zeros, {});
    const auto read = fetch_upload(blobs_, merge, kValues, upload->object);
    ASSERT_TRUE(read.ok()) << read.status();
    double error = 0, energy = 0;
    for (size_t i = 0; i < kValues; ++i) {
      error += (double{(*read)[i]} - values[i]) * (double{(*read)[i]} - values[i]);
      energy += double{values[i]} * values[i];
    }
    const double rounding = upload_rounding(merge, values);
    EXPECT_NEAR(rounding, std::sqrt(error / energy), 1e-6);
    EXPECT_LE(rounding, most);
    EXPECT_EQ(rounding > 0, format != Codec::kFp32);
    EXPECT_FALSE(fetch_upload(blobs_, merge, kValues + kBlock, upload->object).ok());
  }
}

// A store that is away says nothing about the uploads.
TEST_F(MergeReduceTest, AStoreThatDoesNotAnswerBlamesNobody) {
  put_uploads();
  class Away final : public ports::BlobLink {
   public:
    StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override {
      return unavailable("away");
    }
    StatusOr<std::vector<std::string>> get(const std::vector<Digest>&) override {
      return unavailable("away");
    }
  } away;
  EXPECT_TRUE(absl::IsUnavailable(reduce_shard(away, inputs(), task(0, 1)).status()));
  EXPECT_TRUE(unreadable_uploads(away, inputs(), task(0, 1)).empty());
}

TEST_F(MergeReduceTest, ACopyThatIsNotWhatWasCommittedIsPassedOver) {
  put_uploads();
  const auto shard = reduce(0, kBlocks);
  const core::ResultCopy good{shard->object, digest_of("a")};
  const core::ResultCopy sealed_otherwise{shard->object, digest_of("b")};
  const core::ResultCopy gone{digest_of("nothing"), digest_of("a")};
  KeptBlobs link(blobs_);
  const auto fetch = [&](std::vector<core::ResultCopy> copies) {
    return fetch_mean(link, merge_, kValues, {{0, kBlocks, shard->result, std::move(copies)}});
  };
  EXPECT_TRUE(fetch({gone, sealed_otherwise, good}).ok());
  EXPECT_TRUE(absl::IsDataLoss(fetch({sealed_otherwise}).status()));
  EXPECT_TRUE(absl::IsNotFound(fetch({gone}).status()));
  EXPECT_FALSE(fetch({}).ok());
  // Of another owner, with a block that is missing: the others of it are put aside.
  const auto other = reduce_shard(blobs_, inputs(), task(0, kBlocks, "c"));
  const auto manifest = get_manifest(blobs_, other->object);
  blobs_.forget(manifest->chunks[kBlocks - 2]);
  EXPECT_EQ(*fetch({{other->object, digest_of("c")}, good}), *fetch({good}));
  EXPECT_TRUE(absl::IsNotFound(fetch({{other->object, digest_of("c")}}).status()));
  const auto remade = fetch_mean(link, merge_, kValues, {{0, kBlocks, shard->result, {sealed_otherwise, gone}}},
                                 [&](const core::ShardResult&) -> StatusOr<core::ResultCopy> { return good; });
  EXPECT_EQ(*remade, *fetch({good}));
  EXPECT_THAT(message_of(fetch_mean(link, merge_, kValues, {{0, 2, shard->result, {good}}, {2, 4, shard->result, {good}}}).status()),
              testing::HasSubstr("a copy of a shard has"));
  EXPECT_THAT(message_of(fetch_mean(link, merge_, kValues, {{0, 2, shard->result, {good}}}).status()),
              testing::HasSubstr("cover 2 of 6 blocks"));
  EXPECT_THAT(message_of(fetch_mean(link, merge_, kValues, {{1, 5, shard->result, {good}}}).status()),
              testing::HasSubstr("do not tile"));
}

// What is there is reduced, and the rest when it comes: the bits are those of uploads that were whole from the beginning.
TEST_F(MergeReduceTest, WaitsForBlocksOnTheirWay) {
  merge_ = merge_of(Codec::kInt8, Codec::kInt8);
  put_uploads();
  const auto expected = reduce(1, 4);
  const std::vector<float> zeros(kValues, 0.0f);
  test::MemoryBlobs store;
  std::vector<std::unique_ptr<KeptBlobs>> kept;
  std::vector<core::ObjectManifest> manifests;
  for (const std::vector<float>& values : values_) {
    kept.push_back(std::make_unique<KeptBlobs>(store));
    manifests.push_back(commit_delta(*kept.back(), merge_, values, zeros, {}, 2)->manifest);
  }
  ReduceInputs waiting = inputs();
  waiting.overlap = true;
  size_t stored = 0;
  std::mutex mutex;
  waiting.keep_waiting = [&](int64_t) {
    std::lock_guard lock(mutex);
    if (stored < manifests.size()) {
      EXPECT_TRUE(store_delta(*kept[stored], manifests[stored], 1, 1, [] { return false; }).ok());
      ++stored;
    }
    return true;
  };
  const auto reduction = reduce_shard(store, waiting, task(1, 4));
  ASSERT_TRUE(reduction.ok()) << reduction.status();
  EXPECT_EQ(stored, 3u);
  EXPECT_EQ(reduction->result, expected->result);
  EXPECT_EQ(encode(reduction->measures), encode(expected->measures));
}

// A device gets whole blocks, several at once, and only as long as it works.
TEST_F(MergeReduceTest, ADeviceThatFailsIsReplacedByTheCpu) {
  class Device final : public kernels::MergeReducer {
   public:
    bool takes(const kernels::MergeReduction& reduction) const override { return reduction.values == reduction.block_values; }
    Status reduce(const kernels::MergeReduction& reduction) override {
      calls.push_back(reduction.block_count);
      return calls.size() <= working_calls ? cpu.reduce(reduction) : unavailable("a device that is gone");
    }
    size_t working_calls = SIZE_MAX;
    std::vector<uint64_t> calls;
    kernels::CpuMergeReducer cpu;
  };
  merge_ = merge_of(Codec::kInt8, Codec::kInt8);
  put_uploads();
  const auto expected = reduce(0, kBlocks);
  for (const size_t working_calls : {SIZE_MAX, size_t{0}}) {
    Device device;
    device.working_calls = working_calls;
    ReduceInputs on_device = inputs();
    on_device.device = &device;
    const auto reduction = reduce_shard(blobs_, on_device, task(0, kBlocks));
    ASSERT_TRUE(reduction.ok()) << reduction.status();
    EXPECT_EQ(reduction->result, expected->result);
    EXPECT_EQ(encode(reduction->measures), encode(expected->measures));
    uint64_t blocks = 0;
    for (const uint64_t count : device.calls) blocks += count;
    if (working_calls > 0) {
      EXPECT_EQ(blocks, kBlocks - 1);
      EXPECT_LT(device.calls.size(), kBlocks - 1);
    } else {
      EXPECT_EQ(device.calls.size(), 1u);
    }
  }
}

TEST_F(MergeReduceTest, GivesUpWaitingWithoutBlamingAnybody) {
  put_uploads();
  blobs_.forget(get_manifest(blobs_, uploads_[2].object)->chunks[3]);
  ReduceInputs waiting = inputs();
  waiting.overlap = true;
  waiting.keep_waiting = [](int64_t) { return false; };
  std::map<uint32_t, Status> ends;
  std::mutex mutex;
  const std::vector<core::ShardTask> tasks = {{7, 0, 2, digest_of("a")}, {8, 3, 1, digest_of("b")}};
  reduce_shards(blobs_, waiting, tasks, [&](const core::ShardTask& task, const StatusOr<Reduction>& reduction) {
    std::lock_guard lock(mutex);
    EXPECT_TRUE(ends.emplace(task.shard, reduction.status()).second);
  });
  ASSERT_EQ(ends.size(), 2u);
  EXPECT_TRUE(absl::IsUnavailable(ends[8]));
}

TEST_F(MergeReduceTest, AnUploadStopsWhenItsMergeIsOver) {
  test::MemoryBlobs store;
  KeptBlobs kept(store);
  const auto upload = commit_delta(kept, merge_, delta_of(1), std::vector<float>(kValues, 0.0f), {}, 1);
  EXPECT_TRUE(absl::IsCancelled(store_delta(kept, upload->manifest, 1, 2, [] { return true; })));
  EXPECT_EQ(store.size(), 1u);  // the list of its blocks
}

}  // namespace
}  // namespace tessera::node
