// What may change in a running run.
#include "tessera/core/run_changes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/small_run.h"

namespace tessera::test {
namespace {

using testing::HasSubstr;

std::string refusal(const std::string& key, const std::string& value) {
  core::RunSpec spec = small_spec(2, 1);
  const std::string before = encode(spec);
  const Status status = core::set_key(&spec, key, value);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(encode(spec), before);
  return message_of(status);
}

TEST(RunChanges, SetsWhatMayChange) {
  core::RunSpec spec = small_spec(2, 1);
  EXPECT_TRUE(core::set_key(&spec, "training.learning_rate", "0.25").ok());
  EXPECT_TRUE(core::set_key(&spec, "merge.min_microbatches", "7").ok());
  EXPECT_TRUE(core::set_key(&spec, "training.decay", "linear").ok());
  EXPECT_EQ(spec.training.learning_rate, 0.25);
  EXPECT_EQ(spec.merge.min_microbatches, 7u);
  EXPECT_EQ(spec.training.decay, core::LrDecay::kLinear);
  EXPECT_TRUE(core::same_layout(spec, small_spec(2, 1)));
}

TEST(RunChanges, RefusesTheRestWithTheReason) {
  EXPECT_THAT(refusal("model.width", "64"), HasSubstr("can't change in a running run"));
  EXPECT_THAT(refusal("merge.block_values", "512"), HasSubstr("what can change: pipeline.max_in_flight"));
  EXPECT_THAT(refusal("no.such", "1"), HasSubstr("there is no such key"));
  EXPECT_THAT(refusal("training.learning_rate", "fast"), HasSubstr("expected a number, got 'fast'"));
  EXPECT_THAT(refusal("timeouts.lease_ms", "1.5"), HasSubstr("expected a whole number"));
  EXPECT_THAT(refusal("timeouts.lease_ms", "-1"), HasSubstr("expected a whole number"));
  EXPECT_THAT(refusal("merge.quorum", "2"), HasSubstr("merge.quorum: 2 is not allowed"));
  EXPECT_THAT(refusal("merge.quorum", "nan"), HasSubstr("merge.quorum"));
  EXPECT_THAT(refusal("timeouts.sync_ms", "200"), HasSubstr("timeouts.miner_lost_ms: 300 is less than twice"));
  EXPECT_THAT(refusal("training.decay", "steep"), HasSubstr("none of constant, linear, cosine"));
}

TEST(RunChanges, ReadsLayerRangesThatTileTheModel) {
  core::RunSpec spec = small_spec(3, 1);
  spec.model.layers = 12;
  const auto good = core::parse_stage_layers(spec, "0-5,6,7-11");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(*good, (std::vector<uint32_t>{6, 1, 5}));
  const auto why = [&](const std::string& text) { return message_of(core::parse_stage_layers(spec, text).status()); };
  EXPECT_THAT(why("0-5,7-8,9-11"), HasSubstr("must tile"));
  EXPECT_THAT(why("0-5,5-8,9-11"), HasSubstr("must tile"));
  EXPECT_THAT(why("0-5,6-8,9-12"), HasSubstr("must tile"));
  EXPECT_THAT(why("5-0,6-8,9-11"), HasSubstr("must tile"));
  EXPECT_THAT(why("0-5,6-8"), HasSubstr("the ranges end at layer 8"));
  EXPECT_THAT(why("0-5,6-11"), HasSubstr("2 ranges for a run with 3 stages"));
  for (const char* text : {"", "a", "0-", "-3", "0-5,", "0-5;6-11", "0-5,6-8,9-11x", "99999999999"}) {
    EXPECT_FALSE(core::parse_stage_layers(spec, text).ok()) << text;
  }
}

TEST(RunChanges, AnotherCutIsAnotherLayout) {
  core::RunSpec a = small_spec(2, 1);
  a.model.layers = 4;
  a.pipeline.stage_layers = {2, 2};
  core::RunSpec b = a;
  b.pipeline.stage_layers = {1, 3};
  EXPECT_FALSE(core::same_layout(a, b));
  EXPECT_EQ(core::differing_sections(a, b), "pipeline");
}

}  // namespace
}  // namespace tessera::test
