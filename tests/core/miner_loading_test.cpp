// How a miner comes to hold its stage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_merges.h"

namespace tessera::test {
namespace {

using core::MergePhase;
using core::MinerPhase;
using namespace core::miner_effect;

TEST(MinerLoading, FromTheSeedMakesTheInitialMastersTheBase) {
  MinerHarness lone(small_spec(1, 1), 0);
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kJoining);
  lone.assign({});
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kLoading);
  lone.assign({});  // asked again meanwhile
  EXPECT_EQ(lone.background.size(), 1u);
  lone.load();
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kReady);
  EXPECT_TRUE(lone.miner->report_is_urgent());
  const core::SyncRequest report = lone.miner->report();
  EXPECT_EQ(report.applied->state, digest_of("seed"));
  EXPECT_EQ(report.applied->epoch, 0u);
}

TEST(MinerLoading, FromAPublishedState) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.assign(
      {.stage = 0, .epoch = 4, .state = digest_of("state"), .local_state = {}, .schedule_step = 9});
  lone.load();
  const core::SyncRequest report = lone.miner->report();
  EXPECT_EQ(report.applied->state, digest_of("state"));
  EXPECT_EQ(report.status.epoch, 4u);
  EXPECT_EQ(report.status.schedule_step, 9u);
  EXPECT_EQ(report.status.local_steps, 0u);
}

core::Assignment with_own_state() {
  return {.stage = 0, .epoch = 4, .state = digest_of("state"), .local_state = digest_of("own"), .schedule_step = 9};
}

// All that was trained before the checkpoint is step 0 of the new process.
TEST(MinerLoading, WithAStateOfItsOwnCountsItsStepsFromOne) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.assign(with_own_state());
  const auto fetch = std::get<FetchState>(lone.background.front());
  EXPECT_EQ(fetch.assignment.local_state, digest_of("own"));
  lone.load();
  EXPECT_EQ(lone.miner->report().applied->local_step, 1u);
  train(lone, 0, 1);
  EXPECT_EQ(lone.miner->report().receipts.at(0).local_step, 1u);
}

TEST(MinerLoading, APartialGradientThatCameWithItIsGoneOnWith) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.assign(with_own_state());
  lone.take_background<FetchState>();
  lone.step(core::miner_event::StateFetched{
      true, "", lone.values(), std::make_shared<core::LocalState>(), digest_of("state"), {}});
  ASSERT_TRUE(lone.next_job_is<InstallState>());
  lone.jobs.clear();
  lone.step(core::miner_event::StateInstalled{true, "", 1, 1, nullptr});
  train(lone, 0, 1);
  EXPECT_EQ(lone.miner->report().status.local_steps,
            2u);  // one came with it, one more made the step
}

TEST(MinerLoading, IsTriedAgainAfterAWhileWhenItFails) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.assign({});
  lone.take_background<FetchState>();
  core::miner_event::StateFetched failed;
  failed.ok = false;
  failed.why = "no such blob";
  lone.step(failed);
  EXPECT_TRUE(lone.was_said("no such blob"));
  lone.assign({});
  EXPECT_TRUE(lone.background.empty());
  lone.pass(1000);
  lone.assign({});
  EXPECT_EQ(lone.background.size(), 1u);
}

// The report was sent before the stage was loaded, its answer comes after.
TEST(MinerLoading, AnAnswerThatCrossedTheNewsDoesNotLoadAgain) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  lone.lease(1);
  lone.assign({});
  EXPECT_TRUE(lone.background.empty());
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kReady);
  EXPECT_EQ(lone.miner->in_flight(), 1u);
}

TEST(MinerLoading, AgainDropsTheWorkAndTheMerge) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  train(lone, 0, 2);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  lone.lease(7);
  lone.tokens_read();
  core::Assignment anew;
  anew.epoch = 3;
  anew.state = digest_of("state");
  lone.assign(anew);
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kLoading);
  EXPECT_EQ(lone.miner->in_flight(), 0u);
  EXPECT_FALSE(lone.miner->report().applied);
  lone.finish_job();  // the snapshot that was asked for before
  EXPECT_TRUE(std::holds_alternative<FetchState>(lone.background.front()));
  EXPECT_EQ(lone.background.size(), 1u);
  while (lone.next_job_is<Forward>()) lone.finish_job();
  lone.load();
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kReady);
  EXPECT_EQ(lone.miner->report().status.epoch, 3u);
  EXPECT_EQ(lone.miner->report().status.local_steps, 1u);
  lone.lease(8);
  lone.tokens_read();
  EXPECT_TRUE(lone.next_job_is<Forward>());
}

TEST(MinerLoading, AnotherStageNeedsANewProcess) {
  MinerHarness lone(small_spec(2, 1), 0);
  lone.start();
  core::SyncAnswer answer = lone.empty_answer();
  answer.assignment = core::Assignment{};
  answer.assignment->stage = 1;
  answer.assignment->epoch = 1;
  lone.answer(answer);
  EXPECT_EQ(lone.left, "");  // the orchestrator does not know yet that nothing is in flight
  EXPECT_TRUE(lone.miner->joins_again());
  EXPECT_EQ(lone.miner->report().status.phase, MinerPhase::kDraining);
  lone.answer(answer);
  EXPECT_EQ(lone.left, "assigned to stage 1 instead of 0");
  MinerHarness fresh(small_spec(2, 1), 0);
  answer.assignment->stage = 9;
  fresh.answer(answer);
  EXPECT_EQ(fresh.left, "assigned to stage 9 of a run with 2");
}

TEST(MinerLoading, WhoDrainsWhileItLoadsDoesNotBeginToWork) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.assign({});
  lone.step(core::miner_event::DrainRequested{});
  lone.load();
  EXPECT_EQ(lone.miner->phase(), MinerPhase::kDraining);
  lone.assign(
      {.stage = 0, .epoch = 2, .state = digest_of("x"), .local_state = {}, .schedule_step = 0});
  EXPECT_TRUE(lone.background.empty());
}

}  // namespace
}  // namespace tessera::test
