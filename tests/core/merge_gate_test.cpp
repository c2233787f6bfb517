#include "tessera/core/merge_gate.h"

#include <gtest/gtest.h>

namespace tessera::core {
namespace {

UploadMeasure of(double norm, double cosine) { return {norm * norm, norm * norm * cosine}; }

std::vector<std::pair<size_t, MergeFault>> left_out(const std::vector<UploadMeasure>& uploads, const MergeSpec& spec = {}) {
  std::vector<std::pair<size_t, MergeFault>> result;
  for (const GateVerdict& verdict : gate_uploads(uploads, spec)) result.emplace_back(verdict.upload, verdict.fault);
  return result;
}

using Expected = std::vector<std::pair<size_t, MergeFault>>;

TEST(MergeGate, LetsHonestUploadsThrough) {
  EXPECT_EQ(left_out({of(1, 0.4), of(1.5, 0.3), of(0.7, 0.2), of(6, 0.5)}), Expected{});
}

TEST(MergeGate, NamesNormsBeyondTheRatioAndCosinesBelowTheBound) {
  EXPECT_EQ(left_out({of(1, 0.4), of(9, 0.4), of(1, -0.5), of(0.1, 0.4), of(1, 0.4), of(1.1, 0.1)}),
            (Expected{{1, MergeFault::kNorm}, {2, MergeFault::kCosine}, {3, MergeFault::kNorm}}));
}

TEST(MergeGate, WhatIsNotFiniteIsLeftOutOfTheMedianToo) {
  EXPECT_EQ(left_out({{-1, 0}, of(1, 0.4), of(1, 0.4), of(1, 0.4)}), (Expected{{0, MergeFault::kNotFinite}}));
  EXPECT_EQ(left_out({{-1, 0}}), (Expected{{0, MergeFault::kNotFinite}}));
}

TEST(MergeGate, OfTwoNobodyCanTellWhichIsTheOddOne) {
  EXPECT_EQ(left_out({of(1, -1), of(1000, -1)}), Expected{});
  EXPECT_EQ(left_out({of(1, 0), of(0, 0)}), Expected{});
}

TEST(MergeGate, WhereHalfMovedNothingNormsSayNothing) {
  EXPECT_EQ(left_out({of(0, 0), of(0, 0), of(1, 0.5)}), Expected{});
  EXPECT_EQ(left_out({of(0, 0), of(1, 0.5), of(1, 0.5)}), (Expected{{0, MergeFault::kNorm}}));
}

TEST(MergeGate, SumsKeepThatAShardWasNotFinite) {
  UploadMeasure sum;
  sum.add(of(2, 0.5));
  sum.add({-1, 0});
  sum.add(of(3, 0.5));
  EXPECT_FALSE(sum.is_finite());
}

// Shards of nothing but moments have no norms or cosines to tell: what is verified for those is the pseudo-gradients'.
TEST(MergeGate, OnlyShardsOfPseudoGradientsAreVerifiedForNormsAndCosines) {
  std::vector<MeasuredShard> shards;
  for (size_t i = 0; i < 12; ++i) shards.push_back({{of(1, 0.4), of(1, 0.4), of(1, -0.5), of(1, 0.4)}, false, false});
  for (size_t i = 0; i < 24; ++i) shards.push_back({std::vector<UploadMeasure>(4, of(0, 0)), false, true});
  std::vector<size_t> wanted = shards_to_verify(shards, 4, {}, 1);
  EXPECT_EQ(wanted.size(), 8u);
  for (const size_t i : wanted) {
    EXPECT_LT(i, 12u);
    shards[i].verified = true;
  }
  EXPECT_TRUE(shards_to_verify(shards, 4, {}, 1).empty());
  shards[30].measures[1] = {-1, 0};  // but that a moment is not finite only they can tell
  wanted = shards_to_verify(shards, 4, {}, 1);
  EXPECT_EQ(wanted, (std::vector<size_t>{30}));
}

}  // namespace
}  // namespace tessera::core
