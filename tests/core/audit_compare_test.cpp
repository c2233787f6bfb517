#include "tessera/core/audit_compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/base/prng.h"
#include "tessera/core/audit_messages.h"

namespace tessera::core {
namespace {

using testing::HasSubstr;

std::vector<float> noise(uint64_t seed, size_t count, double size = 1) {
  Prng prng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(size * (prng.uniform() * 2 - 1));
  return values;
}

std::vector<float> sum_of(const std::vector<float>& a, const std::vector<float>& b, float weight) {
  std::vector<float> sum(a);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * b[i];
  return sum;
}

TEST(Deviation, MeasuresErrorAngleAndLength) {
  const std::vector<float> a = {3, 4}, b = {3, 4.5f}, twice = {6, 8}, turned = {-3, -4};
  const Deviation same = deviation_of(a, a);
  EXPECT_EQ(same.relative_error, 0);
  EXPECT_DOUBLE_EQ(same.cosine, 1);
  EXPECT_DOUBLE_EQ(same.norm_ratio, 1);
  EXPECT_DOUBLE_EQ(deviation_of(a, b).relative_error, 0.1);
  EXPECT_DOUBLE_EQ(deviation_of(a, twice).norm_ratio, 2);
  EXPECT_DOUBLE_EQ(deviation_of(a, turned).cosine, -1);
}

TEST(Deviation, WhatCannotBeComparedIsNeverWithin) {
  const DeviationLimits anything{.relative_error = HUGE_VAL, .cosine = -2, .least_norm_ratio = -1, .greatest_norm_ratio = HUGE_VAL};
  const std::vector<float> a = {1, 2}, longer = {1, 2, 3};
  const std::vector<float> broken = {1, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(excess_of(deviation_of(a, a), anything), "");
  EXPECT_NE(excess_of(deviation_of(a, longer), anything), "");
  EXPECT_NE(excess_of(deviation_of(a, broken), anything), "");
}

TEST(Deviation, NothingIsOnlyLikeNothing) {
  const DeviationLimits limits = tensor_limits(AuditSpec{}, 0);
  const std::vector<float> zero = {0, 0}, some = {0, 1e-6f};
  EXPECT_EQ(excess_of(deviation_of(zero, zero), limits), "");
  EXPECT_NE(excess_of(deviation_of(zero, some), limits), "");
  EXPECT_NE(excess_of(deviation_of(some, zero), limits), "");
}

TEST(Limits, EachOneIsTold) {
  const AuditSpec audit;
  const DeviationLimits limits = tensor_limits(audit, 0);
  const std::vector<float> honest = noise(1, 10000);
  EXPECT_EQ(excess_of(deviation_of(honest, sum_of(honest, noise(2, 10000), 0.01f)), limits), "");
  EXPECT_THAT(excess_of(deviation_of(honest, sum_of(honest, noise(2, 10000), 0.03f)), limits), HasSubstr("relative error"));
  EXPECT_THAT(excess_of(deviation_of(honest, sum_of(honest, honest, 0.03f)), limits), HasSubstr("relative error"));
  DeviationLimits loose = limits;
  loose.relative_error = 3;
  EXPECT_THAT(excess_of(deviation_of(honest, sum_of(honest, noise(2, 10000), 0.2f)), loose), HasSubstr("cosine"));
  EXPECT_THAT(excess_of(deviation_of(honest, sum_of(honest, honest, 0.03f)), loose), HasSubstr("norm ratio"));
  EXPECT_THAT(excess_of(deviation_of(honest, sum_of(honest, honest, -0.03f)), loose), HasSubstr("norm ratio"));
}

TEST(Limits, AWeightDeltaMayDifferMore) {
  const DeviationLimits limits = delta_limits(AuditSpec{}, 0);
  const std::vector<float> delta = noise(1, 10000, 1e-3);
  EXPECT_EQ(excess_of(deviation_of(delta, sum_of(delta, noise(2, 10000, 1e-3), 0.1f)), limits), "");
  EXPECT_THAT(excess_of(deviation_of(delta, sum_of(delta, noise(2, 10000, 1e-3), 0.2f)), limits), HasSubstr("cosine"));
  EXPECT_THAT(excess_of(deviation_of(delta, sum_of(delta, delta, 0.2f)), limits), HasSubstr("norm ratio"));
  const std::vector<float> unchanged(10000, 0.0f);
  EXPECT_NE(excess_of(deviation_of(delta, unchanged), limits), "");
}

// Rounds rows of 8 to int4 codes, as the wire does but for the scale's own format.
std::vector<float> rounded(const std::vector<float>& values) {
  std::vector<float> out(values.size());
  for (size_t row = 0; row < values.size(); row += 8) {
    float largest = 0;
    for (size_t i = row; i < row + 8; ++i) largest = std::max(largest, std::abs(values[i]));
    for (size_t i = row; i < row + 8; ++i) out[i] = std::nearbyint(values[i] * 7 / largest) * largest / 7;
  }
  return out;
}

TEST(Limits, RoundingToInt4IsNoFraud) {
  const AuditSpec audit;
  const std::vector<float> exact = noise(1, 80000);
  const std::vector<float> expected = rounded(exact);
  const std::vector<float> claimed = rounded(sum_of(exact, noise(2, 80000), 0.005f));
  const Deviation deviation = deviation_of(expected, claimed);
  EXPECT_GT(deviation.relative_error, audit.relative_error) << "the codes amplify the noise";
  const double allowance = rounding_allowance(expected, 8, Codec::kInt4, audit.rounding_flips);
  EXPECT_EQ(excess_of(deviation, tensor_limits(audit, allowance)), "");
  // Ten times the noise is not explained by it.
  const std::vector<float> worse = rounded(sum_of(exact, noise(2, 80000), 0.2f));
  EXPECT_NE(excess_of(deviation_of(expected, worse), tensor_limits(audit, allowance)), "");
  EXPECT_EQ(rounding_allowance(expected, 8, Codec::kBf16, audit.rounding_flips), 0);
}

TEST(Limits, TheLossMayDifferALittle) {
  const AuditSpec audit;
  EXPECT_EQ(loss_excess(audit, 4.0, 4.05), "");
  EXPECT_NE(loss_excess(audit, 4.0, 4.1), "");
  EXPECT_NE(loss_excess(audit, 4.0, 3.9), "");
  EXPECT_EQ(loss_excess(audit, 0.1, 0.11), "");
  EXPECT_NE(loss_excess(audit, 4.0, std::numeric_limits<double>::quiet_NaN()), "");
}

TEST(SegmentCommit, FlawsFromOutsideAreTold) {
  SegmentCommit good;
  good.number = good.first_receipt = 1;
  good.weight_version = 5;
  good.older = {{2, {}}, {4, {}}};
  EXPECT_EQ(flaw_of(good), "");
  const auto flaw_after = [&](auto change) {
    SegmentCommit bad = good;
    change(bad);
    return flaw_of(bad);
  };
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.number = 0; }), "");
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.first_receipt = 0; }), "");
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.steps.resize(kMaxSegmentSteps + 1); }), "");
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.dropped.resize(kMaxDroppedNames + 1); }), "");
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.older[1].version = 5; }), "");
  EXPECT_NE(flaw_after([](SegmentCommit& c) { c.older[1].version = 2; }), "");
}

TEST(BoxDescription, HasTheShapeInIt) {
  EXPECT_EQ(box_description("cuda:3", {}), "cuda:3");
  EXPECT_EQ(box_description("cuda:0", {2, 3}), "cuda:0 and 1 more, zero_stage 3");
  for (const BoxShape& shape : {BoxShape{2, 0}, BoxShape{2, 3}, BoxShape{3, 1}, BoxShape{64, 2}}) {
    EXPECT_EQ(box_shape(box_description("cuda:0", shape)), shape) << shape.workers;
  }
  // Two workers' sums have one order only; it is known how to compute that again.
  EXPECT_EQ(device_kind(box_description("cuda:0", {2, 1})), "cuda");
  EXPECT_EQ(device_kind(box_description("cuda:0", {4, 1})), "cuda-box");
  EXPECT_EQ(device_kind(box_description("cpu", {4, 1})), "cpu-box");
}

TEST(BoxDescription, AnythingElseIsOneDevice) {
  for (const char* text : {"", "cpu", "cuda:0", "cuda:0 and", "cuda:0 and 0 more, zero_stage 1", "cuda:0 and 64 more, zero_stage 1",
                           "cuda:0 and -1 more, zero_stage 1", "cuda:0 and 99999999999 more, zero_stage 1",
                           "cuda:0 and 1 more, zero_stage 4", "cuda:0 and 1 more"}) {
    EXPECT_EQ(box_shape(text), BoxShape{}) << text;
  }
}

}  // namespace
}  // namespace tessera::core
