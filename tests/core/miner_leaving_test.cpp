// A miner that is told of other settings, of another stage, or to go.
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::MinerPhase;

core::SyncAnswer told_of(MinerHarness& miner, const core::RunSpec& spec, uint64_t version) {
  core::SyncAnswer answer = miner.empty_answer();
  answer.run_spec = encode(spec);
  answer.spec_version = version;
  return answer;
}

TEST(MinerLeaving, ItFinishesWhatItHoldsBeforeItTakesAnotherStage) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  lone.lease(1);
  lone.tokens_read();
  core::SyncAnswer answer = lone.empty_answer();
  answer.assignment.emplace().stage = 0;
  answer.drain = true;
  lone.answer(answer);
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kDraining);
  EXPECT_EQ(lone.left, "");
  lone.lease(2);  // an answer that crossed its news
  EXPECT_EQ(lone.miner->in_flight(), 1u);
  while (!lone.jobs.empty()) lone.finish_job();
  EXPECT_EQ(lone.miner->in_flight(), 0u);
  EXPECT_EQ(lone.miner->report().receipts.size(), 1u);
  lone.answer(lone.empty_answer());
  EXPECT_EQ(lone.left, "");  // its receipt is not known yet
  core::SyncAnswer known = lone.empty_answer();
  known.receipts_acknowledged = 1;
  lone.answer(known);
  EXPECT_EQ(lone.left, "sent away by an operator");
}

TEST(MinerSettings, AreTakenAtOnceAndReportedByTheirVersion) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  EXPECT_EQ(lone.miner->report().spec_version, 0u);
  core::RunSpec changed = lone.spec;
  changed.pipeline.max_in_flight = 7;
  changed.timeouts.sync_ms = 3;
  lone.answer(told_of(lone, changed, 4));
  EXPECT_EQ(lone.left, "");
  EXPECT_EQ(lone.miner->report().spec_version, 4u);
  EXPECT_EQ(lone.miner->report().leases_wanted, 7u);
  EXPECT_EQ(lone.miner->spec().timeouts.sync_ms, 3u);
}

TEST(MinerSettings, ThatCantBeReadAreLeftAlone) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  core::RunSpec impossible = lone.spec;
  impossible.merge.quorum = 7;
  lone.answer(told_of(lone, impossible, 2));
  core::SyncAnswer garbage = lone.empty_answer();
  garbage.run_spec = "garbage";
  garbage.spec_version = 3;
  lone.answer(garbage);
  EXPECT_EQ(lone.left, "");
  EXPECT_EQ(lone.miner->report().spec_version, 0u);
  EXPECT_TRUE(lone.was_said("can't be read"));
}

TEST(MinerSettings, OfAnotherLayoutMakeItJoinAgain) {
  core::RunSpec spec = small_spec(2, 1);
  spec.model.layers = 4;
  spec.pipeline.stage_layers = {2, 2};
  MinerHarness lone(spec, 0);
  lone.start();
  spec.pipeline.stage_layers = {1, 3};
  lone.answer(told_of(lone, spec, 2));
  EXPECT_EQ(lone.left, "the layers of the stages changed");
}

}  // namespace
}  // namespace tessera::test
