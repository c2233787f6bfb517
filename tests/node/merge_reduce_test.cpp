#include "tessera/node/merge_reduce.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/memory_ports.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint32_t kBlock = 256;
constexpr uint64_t kValues = 5 * kBlock + 17;  // the last block is a short one

std::vector<float> upload_of(float start) {
  std::vector<float> values(kValues);
  for (size_t i = 0; i < values.size(); ++i) values[i] = start + static_cast<float>(i) / 8;
  return values;
}

class MergeReduceTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const float start : {1.0f, -3.0f, 100.0f}) {
      const std::vector<float> values = upload_of(start);
      uploads_.push_back(
          {*put_object(blobs_, bytes_of(values), kBlock * 4), weights_[uploads_.size()]});
      values_.push_back(values);
    }
  }
  ReduceInputs inputs(uint64_t first, uint64_t count) const {
    return {uploads_, first, count, kBlock, kValues};
  }

  const float weights_[3] = {0.25f, 0.5f, 0.25f};
  test::MemoryBlobs blobs_;
  std::vector<core::UploadRef> uploads_;
  std::vector<std::vector<float>> values_;
};

TEST_F(MergeReduceTest, EveryRangeIsTheWeightedSumInTheManifestsOrder) {
  for (uint64_t first = 0; first < 6; ++first) {
    for (uint64_t count = 1; first + count <= 6; ++count) {
      const StatusOr<Digest> object = reduce_shard(blobs_, inputs(first, count));
      ASSERT_TRUE(object.ok()) << object.status();
      const std::vector<float> sum = values_of(*get_object(blobs_, *object, 0));
      ASSERT_EQ(sum.size(), std::min(kValues, (first + count) * kBlock) - first * kBlock);
      for (size_t i = 0; i < sum.size(); ++i) {
        float expected = 0;
        for (size_t u = 0; u < 3; ++u) expected += weights_[u] * values_[u][first * kBlock + i];
        ASSERT_EQ(sum[i], expected);
      }
      EXPECT_EQ(*object, *reduce_shard(blobs_, inputs(first, count)));  // both owners get one name
    }
  }
}

TEST_F(MergeReduceTest, NeverAMeanOfFewer) {
  blobs_.forget(uploads_[1].object);
  EXPECT_TRUE(absl::IsNotFound(reduce_shard(blobs_, inputs(0, 6)).status()));
  EXPECT_EQ(unreadable_uploads(blobs_, inputs(0, 6)), (std::vector<Digest>{uploads_[1].object}));
  ReduceInputs none = inputs(0, 1);
  none.uploads.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(reduce_shard(blobs_, none).status()));
}

TEST_F(MergeReduceTest, OnlyTheBlocksOfTheShardAreNeeded) {
  const Digest last_chunk = get_manifest(blobs_, uploads_[2].object)->chunks.back();
  blobs_.forget(last_chunk);
  EXPECT_TRUE(reduce_shard(blobs_, inputs(0, 5)).ok());
  EXPECT_TRUE(unreadable_uploads(blobs_, inputs(0, 5)).empty());
  EXPECT_FALSE(reduce_shard(blobs_, inputs(4, 2)).ok());
  EXPECT_EQ(unreadable_uploads(blobs_, inputs(4, 2)), (std::vector<Digest>{uploads_[2].object}));
}

TEST_F(MergeReduceTest, UploadsOfAnotherSizeOrBlockAreRefused) {
  const std::vector<float> values = upload_of(0);
  uploads_[0].object = *put_object(blobs_, bytes_of(values), kBlock * 2);
  const Status status = reduce_shard(blobs_, inputs(0, 1)).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(message_of(status), testing::HasSubstr("in chunks of 512; this stage has"));
  uploads_[0].object = *put_object(blobs_, bytes_of(std::vector<float>(kValues - 1)), kBlock * 4);
  EXPECT_TRUE(absl::IsDataLoss(reduce_shard(blobs_, inputs(0, 1)).status()));
  EXPECT_EQ(unreadable_uploads(blobs_, inputs(0, 1)), (std::vector<Digest>{uploads_[0].object}));
  EXPECT_TRUE(absl::IsOutOfRange(reduce_shard(blobs_, inputs(6, 1)).status()) ||
              absl::IsDataLoss(reduce_shard(blobs_, inputs(6, 1)).status()));
}

// A store that is away says nothing about the uploads.
TEST_F(MergeReduceTest, AStoreThatDoesNotAnswerBlamesNobody) {
  class Away final : public ports::BlobLink {
   public:
    StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override {
      return unavailable("away");
    }
    StatusOr<std::vector<std::string>> get(const std::vector<Digest>&) override {
      return unavailable("away");
    }
  } away;
  EXPECT_TRUE(absl::IsUnavailable(reduce_shard(away, inputs(0, 1)).status()));
  EXPECT_TRUE(unreadable_uploads(away, inputs(0, 1)).empty());
}

}  // namespace
}  // namespace tessera::node
