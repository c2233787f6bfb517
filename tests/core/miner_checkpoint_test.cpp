// A miner's own checkpoint, what its next process makes of it, and leaving in an orderly way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::miner_effect::Backward;
using core::miner_effect::ExportLocalState;
using core::miner_effect::FetchState;
using core::miner_effect::Forward;
using core::miner_effect::SaveLocalState;

core::RunSpec saving_spec(uint32_t interval) {
  core::RunSpec spec = small_spec(1, 1);
  spec.training.microbatches_per_step = 2;
  spec.training.local_checkpoint_steps = interval;
  return spec;
}

void train(MinerHarness& lone, MicrobatchId id) {
  lone.lease(id);
  lone.tokens_read();
  while (!lone.jobs.empty()) lone.finish_job();
}

TEST(OwnCheckpoint, IsSavedAfterSoManySteps) {
  MinerHarness lone(saving_spec(2), 0);
  lone.start();
  for (MicrobatchId id = 0; id < 3; ++id) train(lone, id);
  EXPECT_TRUE(lone.background.empty());
  train(lone, 3);
  const auto save = lone.take_background<SaveLocalState>();
  EXPECT_EQ(save.about.run_id, "0123456789abcdef");
  EXPECT_EQ(save.about.steps, 2u);
  EXPECT_EQ(save.about.epoch, 0u);
  EXPECT_EQ(save.about.base, digest_of("seed"));
  EXPECT_EQ(save.about.schedule_step, 2u);
  EXPECT_THAT(save.about.accumulated, testing::ElementsAre(0, 1, 2, 3));
  for (MicrobatchId id = 4; id < 8; ++id) train(lone, id);
  EXPECT_TRUE(lone.background.empty());  // one at a time
  lone.step(core::miner_event::LocalStateSaved{2, true, ""});
  lone.pass(20);
  while (!lone.jobs.empty()) lone.finish_job();
  EXPECT_EQ(lone.take_background<SaveLocalState>().about.steps, 4u);
}

TEST(OwnCheckpoint, AFailureIsSaidAndTriedAgainLater) {
  MinerHarness lone(saving_spec(1), 0);
  lone.start();
  train(lone, 0);
  train(lone, 1);
  lone.take_background<SaveLocalState>();
  lone.step(core::miner_event::LocalStateSaved{1, false, "no space left"});
  EXPECT_TRUE(lone.was_said("this miner's own checkpoint could not be written: no space left"));
  lone.pass(20);
  EXPECT_TRUE(lone.jobs.empty());
  train(lone, 2);
  train(lone, 3);
  EXPECT_EQ(lone.take_background<SaveLocalState>().about.steps, 2u);
}

TEST(OwnCheckpoint, NoneIsWrittenWhenTurnedOff) {
  MinerHarness lone(saving_spec(0), 0);
  lone.start();
  for (MicrobatchId id = 0; id < 20; ++id) train(lone, id);
  EXPECT_TRUE(lone.background.empty());
}

core::miner_event::StateFetched recovered_state() {
  core::miner_event::StateFetched fetched;
  fetched.masters = std::make_shared<const std::vector<float>>(4, 1.0f);
  fetched.state = digest_of("epoch 0");
  fetched.local_state = std::make_shared<core::LocalState>();
  fetched.recovered.checkpoint = core::LocalCheckpoint{.run_id = "0123456789abcdef",
                                                       .stage = 0,
                                                       .epoch = 0,
                                                       .base = fetched.state,
                                                       .steps = 6,
                                                       .schedule_step = 6,
                                                       .accumulated = {10, 11}};
  fetched.recovered.steps = 8;
  fetched.recovered.steps_lost = 2;
  fetched.recovered.text = "goes on from its own checkpoint";
  return fetched;
}

TEST(OwnCheckpoint, TheNextProcessGoesOnFromIt) {
  MinerHarness lone(saving_spec(2), 0);
  lone.assign({});
  EXPECT_TRUE(lone.take_background<FetchState>().recover);
  lone.step(recovered_state());
  lone.finish_job();
  ASSERT_EQ(lone.miner->phase(), core::MinerPhase::kReady);
  EXPECT_TRUE(lone.was_said("goes on from its own checkpoint"));
  core::SyncRequest report = lone.miner->report();
  EXPECT_EQ(report.status.steps_lost, 2u);
  EXPECT_EQ(report.status.schedule_step, 6u);
  EXPECT_EQ(report.status.local_steps, 1u);  // all of before, as after a checkpoint of the run
  EXPECT_EQ(lone.miner->step_note().steps, 8u);
  // What it has accumulated before is not accumulated again.
  lone.lease(11, 1);
  lone.tokens_read();
  lone.finish_job();
  ASSERT_TRUE(lone.next_job_is<Backward>());
  EXPECT_FALSE(std::get<Backward>(lone.jobs.front()).accumulate);
}

// The receipt of a recovered gradient may have died with the process before: the run would ask for it for ever.
TEST(OwnCheckpoint, WhatIsAskedForOnceMoreIsAccumulatedAgain) {
  MinerHarness lone(saving_spec(2), 0);
  lone.assign({});
  lone.take_background<FetchState>();
  lone.step(recovered_state());
  lone.finish_job();
  const auto accumulates = [&](uint32_t attempt) {
    lone.lease(11, attempt);
    lone.tokens_read();
    lone.finish_job();
    const bool accumulate = std::get<Backward>(lone.jobs.front()).accumulate;
    lone.finish_job();
    return accumulate;
  };
  EXPECT_FALSE(accumulates(1));
  EXPECT_TRUE(accumulates(2));
  EXPECT_FALSE(accumulates(3));  // that receipt is this process' own
  const core::SyncRequest report = lone.miner->report();
  ASSERT_EQ(report.receipts.size(), 3u);
  EXPECT_FALSE(report.receipts[0].accumulated);
  EXPECT_TRUE(report.receipts[1].accumulated);
  EXPECT_FALSE(report.receipts[2].accumulated);
}

TEST(OwnCheckpoint, OneThatTheEngineRefusesIsNotTriedAgain) {
  MinerHarness lone(saving_spec(2), 0);
  lone.assign({});
  lone.take_background<FetchState>();
  lone.step(recovered_state());
  ASSERT_EQ(lone.jobs.size(), 1u);
  lone.jobs.clear();
  core::miner_event::StateInstalled refused;
  refused.ok = false;
  refused.why = "a value is negative";
  lone.step(refused);
  lone.pass(1000);
  lone.assign({});
  EXPECT_FALSE(lone.take_background<FetchState>().recover);
}

TEST(OwnCheckpoint, IsNotLookedForWhenTheRunHasOne) {
  MinerHarness lone(saving_spec(2), 0);
  core::Assignment assignment;
  assignment.state = digest_of("state");
  assignment.local_state = digest_of("local");
  lone.assign(assignment);
  EXPECT_FALSE(lone.take_background<FetchState>().recover);
}

// ---- leaving
// -------------------------------------------------------------------------------------

TEST(Leaving, SavesWhatThereIsWhenNothingIsInFlight) {
  MinerHarness lone(saving_spec(100), 0);
  lone.start();
  train(lone, 0);  // half a step: only in the partial gradient
  EXPECT_FALSE(lone.miner->is_settled());
  lone.step(core::miner_event::DrainRequested{});
  lone.pass(20);
  ASSERT_TRUE(lone.next_job_is<ExportLocalState>());
  lone.finish_job();
  EXPECT_FALSE(lone.miner->is_settled());
  const auto save = lone.take_background<SaveLocalState>();
  EXPECT_THAT(save.about.accumulated, testing::ElementsAre(0));
  lone.step(core::miner_event::LocalStateSaved{save.about.steps, true, ""});
  EXPECT_TRUE(lone.miner->is_settled());
  lone.pass(20);
  EXPECT_TRUE(lone.jobs.empty());
}

TEST(Leaving, IsOrderedByTheOrchestratorToo) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1);
  core::SyncAnswer answer = middle.empty_answer();
  answer.drain = true;
  middle.answer(answer);
  middle.answer(answer);
  EXPECT_EQ(middle.miner->phase(), core::MinerPhase::kDraining);
  EXPECT_EQ(middle.forward_arrives(2), Admission::kNotReady);
  EXPECT_EQ(middle.forward_arrives(1, 0, 1, 0, {1, 0}),
            Admission::kDuplicate);  // what it has it finishes
  backward_through(middle, 1);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
}

TEST(Leaving, AHeadGivesBackWhatItHasNotBegun) {
  core::RunSpec spec = small_spec(2, 2);
  spec.pipeline.max_in_flight = 4;
  MinerHarness head(spec, 0);
  head.start();
  for (MicrobatchId id = 0; id < 3; ++id) head.lease(id);
  head.tokens_read();
  head.tokens_read();  // the first is computed, the second waits for it, the third for its tokens
  head.step(core::miner_event::DrainRequested{});
  EXPECT_EQ(head.miner->in_flight(), 1u);
  EXPECT_EQ(head.miner->report().leases_wanted, 0u);
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
  head.backward_arrives(0);
  head.finish_job();
  EXPECT_EQ(head.miner->in_flight(), 0u);
}

}  // namespace
}  // namespace tessera::test
