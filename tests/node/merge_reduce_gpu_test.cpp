// The reduction of shards on the GPU against the CPU's: the same bytes, digests and measures.
#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "support/memory_ports.h"
#include "support/whole_upload.h"
#include "tessera/base/prng.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr Codec kFormats[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4};

// Counts what the device was given.
class CountingReducer final : public kernels::MergeReducer {
 public:
  explicit CountingReducer(kernels::MergeReducer& reducer) : reducer_(reducer) {}
  bool takes(const kernels::MergeReduction& reduction) const override { return reducer_.takes(reduction); }
  Status reduce(const kernels::MergeReduction& reduction) override {
    blocks += reduction.block_count;
    most_at_once = std::max<uint64_t>(most_at_once, reduction.block_count);
    return reducer_.reduce(reduction);
  }
  std::atomic<uint64_t> blocks{0};
  std::atomic<uint64_t> most_at_once{0};

 private:
  kernels::MergeReducer& reducer_;
};

class MergeReduceGpu : public testing::Test {
 protected:
  void SetUp() override {
    auto reducer = kernels::make_cuda_merge_reducer(0);
    if (!reducer.ok()) GTEST_SKIP() << message_of(reducer.status());
    gpu_ = *std::move(reducer);
  }

  void upload(uint32_t count, uint64_t values) {
    uploads_.clear();
    stage_values_ = values;
    const std::vector<float> zeros(values, 0.0f);
    for (uint32_t k = 0; k < count; ++k) {
      Prng random(k + 1);
      std::vector<float> delta(values);
      for (float& value : delta) value = static_cast<float>(random.uniform() - 0.45) * 1e-3f;
      if (k == 1) break_some(&delta);
      const auto made = test::upload_delta(blobs_, merge_, delta, zeros, {});
      ASSERT_TRUE(made.ok()) << made.status();
      uploads_.push_back({made->object, static_cast<float>(k + 1) / static_cast<float>(count * (count + 1) / 2)});
    }
  }
  // A block of zeros, one with a NaN, one with an infinity.
  void break_some(std::vector<float>* delta) const {
    const uint64_t block = merge_.block_values;
    for (uint64_t i = 0; i < std::min<uint64_t>(block, delta->size()); ++i) (*delta)[i] = 0;
    if (delta->size() > 2 * block) (*delta)[block + 3] = std::nanf("");
    if (delta->size() > 3 * block) (*delta)[2 * block + 7] = std::numeric_limits<float>::infinity();
  }

  StatusOr<Reduction> reduce(kernels::MergeReducer* device, bool overlap) {
    const uint64_t blocks = (stage_values_ + merge_.block_values - 1) / merge_.block_values;
    return reduce_shard(blobs_,
                        {.uploads = uploads_,
                         .stage_values = stage_values_,
                         .merge = merge_,
                         .rounding_key = 5,
                         .overlap = overlap,
                         .device = device},
                        {.first_block = 0, .block_count = blocks, .token = digest_of("token")});
  }

  void expect_the_same() {
    const auto expected = reduce(nullptr, false);
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (const bool overlap : {false, true}) {
      CountingReducer counted(*gpu_);
      const auto actual = reduce(&counted, overlap);
      ASSERT_TRUE(actual.ok()) << actual.status();
      EXPECT_EQ(actual->result, expected->result);
      EXPECT_EQ(actual->object, expected->object);  // sealed with the same token: the same bytes
      EXPECT_EQ(encode(actual->measures), encode(expected->measures));
      EXPECT_EQ(counted.blocks, stage_values_ / merge_.block_values);  // the short one is the CPU's
      most_at_once_ = std::max(most_at_once_, counted.most_at_once.load());
    }
  }

  core::MergeSpec merge_;
  test::MemoryBlobs blobs_;
  std::vector<core::UploadRef> uploads_;
  uint64_t stage_values_ = 0;
  std::unique_ptr<kernels::MergeReducer> gpu_;
  uint64_t most_at_once_ = 0;
};

TEST_F(MergeReduceGpu, GivesTheSameBitsForAllFormatsAndSizes) {
  for (const Codec upload_format : kFormats) {
    for (const Codec result_format : kFormats) {
      merge_.upload_format = upload_format;
      merge_.result_format = result_format;
      for (const uint32_t block : {256u, 4096u}) {
        merge_.block_values = block;
        for (const uint64_t values :
             {uint64_t{1}, uint64_t{block} - 1, uint64_t{block}, uint64_t{block} + 1, uint64_t{11} * block + 77}) {
          SCOPED_TRACE(testing::Message() << static_cast<int>(upload_format) << " to " << static_cast<int>(result_format)
                                          << ", " << values << " values in blocks of " << block);
          upload(3, values);
          expect_the_same();
        }
      }
    }
  }
  EXPECT_GT(most_at_once_, 1u);
}

TEST_F(MergeReduceGpu, GivesTheSameTrimmedMeans) {
  merge_.block_values = 1024;
  for (const double share : {0.1, 0.34}) {
    merge_.trim_share = share;
    for (const uint32_t count : {1u, 2u, 7u, 40u}) {
      SCOPED_TRACE(testing::Message() << count << " uploads, " << share);
      upload(count, 9 * 1024 + 513);
      expect_the_same();
    }
  }
}

TEST_F(MergeReduceGpu, ManyUploadsAndOneAlone) {
  merge_.block_values = 16384;
  for (const uint32_t count : {1u, 90u}) {
    upload(count, 3 * 16384);
    expect_the_same();
  }
}

TEST_F(MergeReduceGpu, LeavesWhatDoesNotFitToTheCpu) {
  merge_.block_values = 1 << 18;
  merge_.upload_format = Codec::kFp32;
  upload(20, uint64_t{2} << 18);  // 20 MiB of a block of all uploads
  const auto expected = reduce(nullptr, true);
  CountingReducer counted(*gpu_);
  const auto actual = reduce(&counted, true);
  ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
  EXPECT_EQ(actual->result, expected->result);
  EXPECT_EQ(counted.blocks, 0u);
}

}  // namespace
}  // namespace tessera::node
