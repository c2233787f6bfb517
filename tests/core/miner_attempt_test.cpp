// Attempts and leases of microbatches at a miner, what fails, and what it reports.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::MicrobatchKey;
using core::miner_effect::Backward;
using core::miner_effect::Forward;

TEST(MinerAttempts, ANewerOneReplacesAnOlderOneAndFencesIt) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1, 0);
  EXPECT_EQ(middle.forward_arrives(1, 0), Admission::kDuplicate);
  EXPECT_EQ(middle.forward_arrives(1, 1), Admission::kAccepted);
  EXPECT_EQ(middle.discarded, (std::vector<MicrobatchKey>{{1, 0}}));
  EXPECT_EQ(middle.forward_arrives(1, 0), Admission::kStaleAttempt);
  EXPECT_EQ(middle.backward_arrives(1, 0), Admission::kUnknownMicrobatch);
  middle.finish_job();
  middle.frame_answered(Admission::kAccepted);
  backward_through(middle, 1, 1);
  EXPECT_EQ(middle.miner->report().receipts.at(0).attempt, 1u);
}

TEST(MinerAttempts, AMicrobatchIsAccumulatedOnceHere) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1, 0);
  middle.backward_arrives(1, 0);
  EXPECT_EQ(middle.forward_arrives(1, 1),
            Admission::kAccepted);  // while the first is being accumulated
  middle.finish_job();
  middle.frame_answered(Admission::kAccepted);
  middle.finish_job();
  middle.frame_answered(Admission::kAccepted);
  middle.backward_arrives(1, 1);
  ASSERT_TRUE(middle.next_job_is<Backward>());
  EXPECT_FALSE(std::get<Backward>(middle.jobs.front()).accumulate);
  middle.finish_job();
  const core::SyncRequest report = middle.miner->report();
  ASSERT_EQ(report.receipts.size(), 2u);
  EXPECT_TRUE(report.receipts[0].accumulated);
  EXPECT_FALSE(report.receipts[1].accumulated);
  EXPECT_TRUE(middle.jobs.empty());  // one gradient: no step
}

TEST(MinerAttempts, ACountedStageComputesOnlyTheInputGradient) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  EXPECT_EQ(middle.forward_arrives(1, 1, 0, 0b010), Admission::kAccepted);
  middle.finish_job();
  EXPECT_EQ(middle.sends.at(0).frame.counted_stages, 0b010u);
  middle.frame_answered(Admission::kAccepted);
  middle.backward_arrives(1, 1);
  EXPECT_FALSE(std::get<Backward>(middle.jobs.front()).accumulate);
}

// A neighbour that invents a newer attempt, or that its microbatch was given to another head, would cancel what is held.
TEST(MinerAttempts, OnlyALeaseThatTheOrchestratorSignedCancelsWhatIsHeld) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1, 0);
  core::Frame forged = middle.frame_of(1, 1, core::Direction::kForward, 0);
  forged.tokens.assign(middle.spec.training.microbatch_size * (middle.spec.model.context + 1), 1);
  forged.pathway = {1, 10, 20};
  EXPECT_EQ(middle.arrive(forged, 1), Admission::kNotLeased);  // signed by nobody
  core::Frame signed_for_another = middle.frame_of(1, 0, core::Direction::kForward, 0);
  signed_for_another.pathway = {0, 10, 20};
  middle.sign_lease(&signed_for_another);  // the lease that is held
  forged.lease_expires_unix_ms = signed_for_another.lease_expires_unix_ms;
  forged.lease_signature = signed_for_another.lease_signature;
  EXPECT_EQ(middle.arrive(forged, 1), Admission::kNotLeased);
  forged.attempt = 0;
  forged.repairs = {1, 0};  // another head, says the sender
  EXPECT_EQ(middle.arrive(forged, 1), Admission::kNotLeased);
  middle.sign_lease(&forged);
  forged.repairs = {2, 0};  // twice
  EXPECT_EQ(middle.arrive(forged, 1), Admission::kNotLeased);
  forged.repairs = {0, 1};
  forged.counted_stages = 0b010;  // that its gradient is counted already
  EXPECT_EQ(middle.arrive(forged, 1), Admission::kNotLeased);
  EXPECT_TRUE(middle.discarded.empty());
  EXPECT_EQ(middle.miner->in_flight(), 1u);
  backward_through(middle, 1, 0);
  EXPECT_TRUE(middle.miner->report().receipts.at(0).accumulated);
}

TEST(MinerAttempts, AMicrobatchThatWasNeverLeasedIsNotTakenIn) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  core::Frame invented = middle.frame_of(5, 0, core::Direction::kForward, 0);
  invented.tokens.assign(middle.spec.training.microbatch_size * (middle.spec.model.context + 1), 1);
  EXPECT_EQ(middle.arrive(invented, 0), Admission::kNotLeased);
  middle.sign_lease(&invented);
  middle.now += middle.spec.timeouts.lease_ms + 600001;  // long after it was over
  EXPECT_EQ(middle.arrive(invented, 0), Admission::kNotLeased);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  EXPECT_TRUE(middle.jobs.empty());
}

TEST(MinerAttempts, ALeasesSignatureIsLookedAtOnceAndGoesOn) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  EXPECT_EQ(middle.forward_arrives(1), Admission::kAccepted);
  EXPECT_EQ(middle.forward_arrives(1), Admission::kDuplicate);
  EXPECT_EQ(middle.forward_arrives(1, 0, 1, 0, {0, 1}), Admission::kDuplicate);  // the same lease by another way
  EXPECT_EQ(middle.verified, 1u);
  middle.finish_job();
  const core::Frame& onward = middle.sends.at(0).frame;
  EXPECT_EQ(onward.lease_signature, MinerHarness::signature_of(core::lease_of(onward).signed_bytes(MinerHarness::kRunId)));
  // Given to another head: from then on the new lease goes with it.
  EXPECT_EQ(middle.forward_arrives(1, 0, 0, 0, {1, 0}), Admission::kDuplicate);
  EXPECT_EQ(middle.verified, 2u);
  middle.frame_answered(Admission::kFull);
  const core::Frame& again = middle.sends.at(0).frame;
  EXPECT_EQ(again.repairs.at(0), 1u);
  EXPECT_EQ(again.lease_signature, MinerHarness::signature_of(core::lease_of(again).signed_bytes(MinerHarness::kRunId)));
}

TEST(MinerLeases, AnAnswerCountsOnce) {
  MinerHarness head(small_spec(2, 2), 0);
  head.start();
  core::SyncAnswer answer = head.empty_answer();
  answer.lease_request = head.miner->report().lease_request;
  answer.leases.push_back({3, 0, 0, {0, 10}, 1000});
  head.answer(answer);
  head.answer(answer);
  EXPECT_EQ(head.reads.size(), 1u);
  answer.lease_request = head.miner->report().lease_request;
  answer.leases = {{4, 0, 0, {0, 10, 20}, 1000}};  // not a pathway of this run
  head.answer(answer);
  EXPECT_EQ(head.reads.size(), 1u);
  head.lease(3, 1);  // the next attempt of what it holds
  EXPECT_EQ(head.miner->in_flight(), 1u);
  head.tokens_read();  // of the first attempt: too late
  EXPECT_TRUE(head.jobs.empty());
  head.tokens_read();
  EXPECT_TRUE(head.next_job_is<Forward>());
}

TEST(MinerLeases, ExpireWhereverTheyAre) {
  MinerHarness head(small_spec(2, 2), 0);
  head.start();
  head.lease(1);
  head.lease(2);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
  head.pass(999);
  EXPECT_EQ(head.miner->in_flight(), 2u);
  head.pass(1);
  EXPECT_EQ(head.miner->in_flight(), 0u);
  EXPECT_EQ(head.discarded, (std::vector<MicrobatchKey>{{1, 0}}));
  head.tokens_read();
  EXPECT_TRUE(head.jobs.empty());
  EXPECT_EQ(head.backward_arrives(1), Admission::kUnknownMicrobatch);
}

TEST(MinerLeases, WhatIsBeingComputedWhenItExpiresIsThrownAwayOrReceipted) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  middle.forward_arrives(1);
  middle.pass(1000);  // its forward is running
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  middle.finish_job();
  EXPECT_EQ(middle.discarded, (std::vector<MicrobatchKey>{{1, 0}}));
  EXPECT_TRUE(middle.sends.empty());
  forward_through(middle, 2);
  middle.backward_arrives(2);
  middle.pass(1000);  // its backward is running: the gradient counts
  middle.finish_job();
  EXPECT_EQ(middle.miner->report().receipts.size(), 1u);
}

TEST(MinerFailures, OfTokensAndComputeDropTheMicrobatch) {
  MinerHarness head(small_spec(2, 2), 0);
  head.start();
  head.lease(1);
  head.reads.clear();
  head.step(core::miner_event::TokensRead{{1, 0}, {}, false, "disk on fire"});
  EXPECT_TRUE(head.was_said("disk on fire"));
  EXPECT_EQ(head.miner->in_flight(), 0u);
  head.lease(2);
  head.tokens_read();
  head.jobs.clear();
  head.step(core::miner_event::ComputeFailed{{2, 0}, "forward: token out of range"});
  EXPECT_EQ(head.miner->in_flight(), 0u);
  head.lease(3);
  head.tokens_read();
  EXPECT_TRUE(head.next_job_is<Forward>());  // the compute thread is free again
}

TEST(MinerFailures, ADownstreamThatCallsItStaleEndsIt) {
  MinerHarness head(small_spec(2, 2), 0);
  head.start();
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kStaleAttempt);
  EXPECT_EQ(head.miner->in_flight(), 0u);
  EXPECT_EQ(head.discarded.size(), 1u);
}

TEST(MinerDraining, TakesNothingNewAndFinishesWhatItHas) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1);
  middle.step(core::miner_event::DrainRequested{});
  EXPECT_TRUE(middle.miner->report_is_urgent());
  EXPECT_EQ(middle.miner->report().status.phase, core::MinerPhase::kDraining);
  EXPECT_EQ(middle.forward_arrives(2), Admission::kNotReady);
  backward_through(middle, 1);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  EXPECT_EQ(middle.miner->report().receipts.size(), 1u);
  MinerHarness head(small_spec(3, 2), 0);
  head.start();
  head.step(core::miner_event::DrainRequested{});
  EXPECT_EQ(head.miner->report().leases_wanted, 0u);
  head.lease(1);
  EXPECT_TRUE(head.reads.empty());
}

TEST(MinerReports, WhatIsUrgentAfterAReportWasSentStaysUrgent) {
  MinerHarness head(small_spec(1, 1), 0);
  head.start();
  head.lease(0);
  head.tokens_read();
  head.finish_job();
  EXPECT_FALSE(head.miner->report_is_urgent() && head.miner->report().receipts.empty());
  head.miner->report();  // on its way
  head.finish_job();     // and now there is news
  head.answer(head.empty_answer());
  EXPECT_TRUE(head.miner->report_is_urgent());
}

TEST(MinerReports, ReceiptsStayUntilTheyAreAcknowledged) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  for (MicrobatchId id = 0; id < 3; ++id) {
    lone.lease(id);
    lone.tokens_read();
    while (!lone.jobs.empty()) lone.finish_job();
  }
  EXPECT_EQ(lone.miner->report().receipts.size(), 3u);
  core::SyncAnswer answer = lone.empty_answer();
  answer.receipts_acknowledged = 2;
  lone.answer(answer);
  ASSERT_EQ(lone.miner->report().receipts.size(), 1u);
  EXPECT_EQ(lone.miner->report().receipts[0].sequence, 3u);
}

}  // namespace
}  // namespace tessera::test
