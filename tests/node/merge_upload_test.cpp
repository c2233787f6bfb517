// Uploads and their error feedback.
#include <gtest/gtest.h>

#include <cmath>

#include "node/merge_fixture.h"
#include "support/memory_ports.h"
#include "support/whole_upload.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

using test::upload_delta;

TEST(UploadDelta, WhatOneUploadLeavesOutTheNextOnesBring) {
  test::MemoryBlobs blobs;
  const core::MergeSpec merge = merge_of(Codec::kInt4, Codec::kFp32);
  const std::vector<float> base = delta_of(0.013f), snapshot(kValues, 0.0f);
  std::vector<float> residual;
  std::vector<double> sent(kValues, 0.0);
  constexpr int kRounds = 50;
  for (int round = 0; round < kRounds; ++round) {
    const auto upload = upload_delta(blobs, merge, base, snapshot, residual);
    ASSERT_TRUE(upload.ok());
    const std::string bytes = *get_object(blobs, upload->object, 0);
    std::vector<float> values(kValues);
    kernels::merge_decode_cpu({.run = {Codec::kInt4, kValues, kBlock},
                               .payload = reinterpret_cast<const uint8_t*>(bytes.data()),
                               .assign = true,
                               .sum = values.data()});
    for (size_t i = 0; i < kValues; ++i) sent[i] += values[i];
    residual = upload->residual;
  }
  for (size_t i = 0; i < kValues; ++i) {
    // One step of int4 over all rounds together, not one a round.
    ASSERT_NEAR(sent[i] / kRounds, base[i], 2.1 * 12.2 / 7 / kRounds) << i;
  }
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(squares);
}

// What a validator takes for granted: an upload after much larger ones, as at the end of a schedule, is no further from the work
// than twice its own rounding. What there is no room for is not lost.
TEST(UploadDelta, WhatLargeUploadsLeftOutDoesNotWeighOnASmallOne) {
  const std::vector<float> zeros(kValues, 0.0f), large = delta_of(0.013f);
  std::vector<float> small(kValues);
  for (size_t i = 0; i < kValues; ++i) small[i] = std::sin(static_cast<float>(i)) / 20;
  for (const Codec format : {Codec::kInt8, Codec::kInt4, Codec::kBf16}) {
    test::MemoryBlobs blobs;
    const core::MergeSpec merge = merge_of(format, Codec::kFp32);
    const auto read = [&](const DeltaUpload& upload) { return *fetch_upload(blobs, merge, kValues, upload.object); };
    const auto first = upload_delta(blobs, merge, large, zeros, {});
    const auto second = upload_delta(blobs, merge, small, zeros, first->residual);
    const double rounding = upload_rounding(merge, small) * distance(small, zeros);
    EXPECT_GT(distance(first->residual, zeros), 2 * rounding);
    EXPECT_GT(distance(read(*second), small), rounding);
    EXPECT_LE(distance(read(*second), small), 2 * rounding);
    const std::vector<float> sent_first = read(*first), sent_second = read(*second);
    for (size_t i = 0; i < kValues; ++i) {
      ASSERT_NEAR(double{sent_first[i]} + sent_second[i] + second->residual[i], double{large[i]} + small[i], 1e-5) << i;
    }
  }
}

TEST(UploadDelta, ExactFormatsAndBrokenValuesLeaveNothing) {
  test::MemoryBlobs blobs;
  std::vector<float> base = delta_of(1), snapshot(kValues, 0.0f);
  EXPECT_TRUE(upload_delta(blobs, merge_of(Codec::kFp32, Codec::kFp32), base, snapshot, {})->residual.empty());
  base[5] = std::nanf("");
  const auto upload = upload_delta(blobs, merge_of(Codec::kInt8, Codec::kFp32), base, snapshot, {});
  for (const float value : upload->residual) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace tessera::node
