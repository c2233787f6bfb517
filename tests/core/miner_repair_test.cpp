// A microbatch whose miner died on the way, in the hands of each who has a part in its repair.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::Direction;
using core::MicrobatchKey;
using core::miner_effect::Backward;
using core::miner_effect::Forward;

core::RunSpec patient_spec(uint32_t stages) {
  core::RunSpec spec = small_spec(stages, 2);
  spec.timeouts.lease_ms = 60000;
  return spec;
}

// ---- the sender: it kept the boundary tensor ---------------------------------------------------

TEST(MinerRepair, ABrokenConnectionGivesWhatThePeerHoldsToAnother) {
  MinerHarness head(patient_spec(3), 0);
  head.start();
  head.lease(1);
  head.lease(2);
  for (int i = 0; i < 2; ++i) {
    head.tokens_read();
    head.finish_job();
  }
  head.frame_answered(Admission::kAccepted);  // the first is there, the second on its way
  ASSERT_EQ(head.sends.size(), 1u);
  head.sends.clear();
  head.peer_broke(10);
  ASSERT_EQ(head.sends.size(), 2u);
  for (const auto& send : head.sends) {
    EXPECT_EQ(send.peer.miner, 11u);
    EXPECT_EQ(send.frame.payload, "activation");
    EXPECT_EQ(send.frame.attempt, 0u);
    EXPECT_EQ(send.frame.tokens.size(), 10u);
    EXPECT_EQ(send.frame.repairs, (std::vector<uint8_t>{0, 1}));
  }
  EXPECT_TRUE(head.was_said("miner 10 is left out: the connection to it broke"));
  EXPECT_TRUE(head.was_said("miner 10 holds 2 microbatches, which others get now"));
  head.frame_answered(Admission::kAccepted);
  head.frame_answered(Admission::kAccepted);
  EXPECT_TRUE(head.jobs.empty());  // nothing was computed again here
  EXPECT_EQ(head.backward_arrives(1, 0, 1), Admission::kAccepted);
  head.finish_job();
  const core::SyncRequest report = head.miner->report();
  EXPECT_EQ(report.receipts.at(0).downstream, 11u);
  EXPECT_TRUE(report.receipts.at(0).repaired);
  EXPECT_EQ(report.status.forwards, 2u);
  EXPECT_EQ(report.status.recomputed, 0u);
}

TEST(MinerRepair, TheOneThatWasThoughtDeadIsToldThatItsWorkWasTakenOver) {
  MinerHarness head(patient_spec(2), 0);
  head.start();
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
  head.peer_broke(10);
  head.frame_answered(Admission::kAccepted);
  EXPECT_EQ(head.backward_arrives(1, 0, 0), Admission::kTakenOver);
  EXPECT_TRUE(head.jobs.empty());
  EXPECT_EQ(head.backward_arrives(1, 0, 1), Admission::kAccepted);
}

TEST(MinerRepair, AnotherProcessAtThePeersPlaceHoldsNothing) {
  MinerHarness head(patient_spec(2), 0);
  head.start();
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
  std::vector<core::Peer> peers = head.all_peers();
  peers[0].incarnation = 5;
  head.give_peers(peers);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 11u);
  head.frame_answered(Admission::kFull);  // then the new process may have it
  head.pass(50);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 10u);
}

TEST(MinerRepair, WithNobodyElseItWaitsForThePeerToComeBack) {
  MinerHarness head(patient_spec(2), 0);
  head.give_peers(head.all_peers(1));
  head.assign({});
  head.load();
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  head.probe_answered(true);
  head.frame_answered(Admission::kAccepted);
  head.peer_broke(10);
  EXPECT_TRUE(head.sends.empty());
  head.pass(200);
  ASSERT_EQ(head.probes.size(), 1u);
  head.probe_answered(true);
  head.pass(50);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].frame.repairs, (std::vector<uint8_t>{0, 1}));
  head.frame_answered(Admission::kDuplicate);  // it had it all the time
  EXPECT_EQ(head.backward_arrives(1), Admission::kAccepted);
}

// ---- the replacement ---------------------------------------------------------------------------

TEST(MinerRepair, AReplacementComputesTheForwardAgainAndCountsIt) {
  MinerHarness middle(patient_spec(3), 1);
  middle.start();
  ASSERT_EQ(middle.forward_arrives(1, 0, 0, 0, {0, 1}), Admission::kAccepted);
  EXPECT_TRUE(middle.was_said("microbatch 1 attempt 0: taken from miner 0 in place of another"));
  middle.finish_job();
  ASSERT_EQ(middle.sends.size(), 1u);
  EXPECT_EQ(middle.sends[0].peer.miner, 20u);  // the pathway's next, which has it
  EXPECT_EQ(middle.sends[0].frame.repairs, (std::vector<uint8_t>{0, 1, 0}));
  middle.frame_answered(Admission::kDuplicate);
  backward_through(middle, 1);
  const core::SyncRequest report = middle.miner->report();
  EXPECT_TRUE(report.receipts.at(0).repaired);
  EXPECT_TRUE(report.receipts.at(0).accumulated);
  EXPECT_EQ(report.status.forwards, 1u);
  EXPECT_EQ(report.status.recomputed, 1u);
}

// ---- the downstream neighbour ------------------------------------------------------------------

TEST(MinerRepair, AReplacedUpstreamIsServedWhateverTheStateAndNothingIsComputedAgain) {
  for (int progress = 0; progress < 5; ++progress) {
    MinerHarness middle(patient_spec(3), 1);
    middle.start();
    ASSERT_EQ(middle.forward_arrives(1, 0, 0, 0, {0, 0}), Admission::kAccepted);
    if (progress >= 1) middle.finish_job();                          // sending
    if (progress >= 2) middle.frame_answered(Admission::kAccepted);  // awaiting the gradient
    if (progress >= 3) middle.backward_arrives(1);                   // backward
    if (progress >= 4) middle.finish_job();                          // returning
    const size_t sent_before = middle.sends.size();
    EXPECT_EQ(middle.forward_arrives(1, 0, 1, 0, {1, 0}), Admission::kDuplicate) << progress;
    EXPECT_EQ(middle.forward_arrives(1, 0, 0, 0, {0, 0}), Admission::kTakenOver) << progress;
    EXPECT_EQ(middle.sends.size(), sent_before + (progress == 4)) << progress;
    if (progress == 4) middle.sends.pop_front();  // to the one that is gone
    if (progress < 1) middle.finish_job();
    if (progress < 2) middle.frame_answered(Admission::kAccepted);
    if (progress < 3) middle.backward_arrives(1);
    if (progress < 4) middle.finish_job();
    ASSERT_EQ(middle.sends.size(), 1u) << progress;
    EXPECT_EQ(middle.sends[0].peer.miner, 1u) << progress;
    EXPECT_EQ(middle.sends[0].frame.direction, Direction::kBackward);
    middle.frame_answered(Admission::kAccepted);
    EXPECT_EQ(middle.miner->in_flight(), 0u);
    const core::SyncRequest report = middle.miner->report();
    EXPECT_EQ(report.receipts.size(), 1u) << progress;
    EXPECT_EQ(report.receipts[0].repaired, progress < 4) << progress;
    EXPECT_TRUE(middle.jobs.empty());
    EXPECT_TRUE(middle.discarded.empty());
  }
}

// The upstream had the gradient already when it died: its replacement gets the same once more.
TEST(MinerRepair, AGradientIsKeptUntilTheLeaseIsOver) {
  MinerHarness tail(patient_spec(2), 1);
  tail.start();
  ASSERT_EQ(tail.forward_arrives(1), Admission::kAccepted);
  tail.finish_job();
  tail.finish_job();
  tail.frame_answered(Admission::kAccepted);
  ASSERT_EQ(tail.miner->in_flight(), 0u);
  EXPECT_EQ(tail.forward_arrives(1, 0, 1, 0, {1, 0}), Admission::kDuplicate);
  ASSERT_EQ(tail.sends.size(), 1u);
  EXPECT_EQ(tail.sends[0].peer.miner, 1u);
  EXPECT_EQ(tail.sends[0].frame.payload, "gradient");
  tail.frame_answered(Admission::kAccepted);
  EXPECT_EQ(tail.forward_arrives(1, 0, 0), Admission::kTakenOver);  // the one that was replaced
  EXPECT_EQ(tail.forward_arrives(1, 0, 0, 0, {1, 1}), Admission::kDuplicate);
  tail.frame_answered(Admission::kAccepted);
  EXPECT_EQ(tail.miner->report().receipts.size(), 1u);
  EXPECT_TRUE(tail.jobs.empty());
  EXPECT_EQ(tail.forward_arrives(1, 1), Admission::kAccepted);  // a new attempt is another matter
  EXPECT_EQ(tail.forward_arrives(1, 0, 0, 0, {1, 2}), Admission::kStaleAttempt);
}

// The upstream's next process does not know it; the one that goes on with what the dead one held gets it.
TEST(MinerRepair, AGradientThatUpstreamDoesNotKnowAnyMoreIsKeptToo) {
  MinerHarness tail(patient_spec(2), 1);
  tail.start();
  ASSERT_EQ(tail.forward_arrives(1), Admission::kAccepted);
  tail.finish_job();
  tail.finish_job();
  tail.frame_answered(Admission::kUnknownMicrobatch);
  ASSERT_EQ(tail.miner->in_flight(), 0u);
  EXPECT_EQ(tail.forward_arrives(1, 0, 1, 0, {1, 0}), Admission::kDuplicate);
  ASSERT_EQ(tail.sends.size(), 1u);
  EXPECT_EQ(tail.sends[0].frame.payload, "gradient");
  EXPECT_TRUE(tail.jobs.empty());
}

TEST(MinerRepair, KeptGradientsAreBounded) {
  MinerHarness tail(patient_spec(2), 1);
  tail.start();
  for (MicrobatchId id = 0; id < 300; ++id) {
    ASSERT_EQ(tail.forward_arrives(id), Admission::kAccepted);
    while (!tail.jobs.empty()) tail.finish_job();
    tail.frame_answered(Admission::kAccepted);
  }
  EXPECT_EQ(tail.forward_arrives(299, 0, 1, 0, {1, 0}), Admission::kDuplicate);
  EXPECT_EQ(tail.forward_arrives(0, 0, 1, 0, {1, 0}), Admission::kAccepted);  // forgotten: again
  tail.finish_job();
  ASSERT_TRUE(tail.next_job_is<Backward>());
  EXPECT_FALSE(std::get<Backward>(tail.jobs.front()).accumulate);  // but not counted again
}

// ---- heads -------------------------------------------------------------------------------------

TEST(MinerRepair, AHeadThatTakesOverGoesOnWithTheSameAttempt) {
  MinerHarness head(patient_spec(2), 0);
  head.start();
  head.lease(4, 2, 0, {0, 11}, true);
  EXPECT_TRUE(head.was_said("microbatch 4 attempt 2: taken from the orchestrator in place of another"));
  head.tokens_read();
  head.finish_job();
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 11u);
  EXPECT_EQ(head.sends[0].frame.attempt, 2u);
  EXPECT_EQ(head.sends[0].frame.repairs, (std::vector<uint8_t>{1, 0}));
  head.frame_answered(Admission::kDuplicate);
  EXPECT_EQ(head.backward_arrives(4, 2, 1), Admission::kAccepted);
  head.finish_job();
  EXPECT_TRUE(head.miner->report().receipts.at(0).repaired);
  EXPECT_EQ(head.miner->report().status.recomputed, 1u);
}

// ---- one that comes back after its work was taken over
// -------------------------------------------

TEST(MinerRepair, OneThatIsToldThatItWasReplacedDropsItsWork) {
  MinerHarness middle(patient_spec(3), 1);
  middle.start();
  ASSERT_EQ(middle.forward_arrives(1), Admission::kAccepted);
  middle.finish_job();
  middle.frame_answered(Admission::kTakenOver);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  EXPECT_EQ(middle.discarded, (std::vector<MicrobatchKey>{{1, 0}}));
  EXPECT_TRUE(middle.was_said("downstream answered 'taken over'"));
}

TEST(MinerRepair, OneThatStoodStillDropsWhatItHasNotAccumulated) {
  MinerHarness middle(patient_spec(3), 1);
  middle.start();
  for (MicrobatchId id : {1, 2, 3}) forward_through(middle, id);
  middle.backward_arrives(1);  // running
  middle.backward_arrives(2);  // waits for it
  middle.pass(2000);
  EXPECT_TRUE(middle.was_said("this process stood still for 2000 ms"));
  EXPECT_EQ(middle.miner->in_flight(), 2u);
  EXPECT_EQ(middle.backward_arrives(2), Admission::kUnknownMicrobatch);
  EXPECT_EQ(middle.backward_arrives(3), Admission::kAccepted);
  MinerHarness head(patient_spec(2), 0);
  head.start();
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
  head.pass(2000);  // longer than miner_lost_ms: the orchestrator has given it to another head
  EXPECT_EQ(head.miner->in_flight(), 0u);
}

// Answers that did not come in time because nobody was there to hear them say nothing about a peer.
TEST(MinerRepair, OneThatStoodStillBlamesNobody) {
  MinerHarness head(small_spec(2, 2), 0);
  core::RunSpec spec = patient_spec(2);
  spec.timeouts.miner_lost_ms = 10000;
  MinerHarness sleeper(spec, 0);
  sleeper.start();
  sleeper.lease(1);
  sleeper.tokens_read();
  sleeper.finish_job();
  sleeper.pass(2000);
  sleeper.probe_answered(false);
  sleeper.frame_answered(Admission::kUnreachable);
  EXPECT_FALSE(sleeper.was_said("is left out"));
  ASSERT_EQ(sleeper.sends.size(), 1u);
  EXPECT_EQ(sleeper.sends[0].peer.miner, 10u);
  EXPECT_EQ(sleeper.sends[0].frame.repairs, (std::vector<uint8_t>{0, 0}));
}

// It was suspected, and the replacement died: what it holds is good after all.
TEST(MinerRepair, OneThatGetsItsOwnWorkBackTellsDownstream) {
  MinerHarness middle(patient_spec(3), 1);
  middle.start();
  forward_through(middle, 1);
  EXPECT_EQ(middle.forward_arrives(1, 0, 0, 0, {0, 2}), Admission::kDuplicate);
  ASSERT_EQ(middle.sends.size(), 1u);
  EXPECT_EQ(middle.sends[0].frame.repairs, (std::vector<uint8_t>{0, 2, 0}));
  middle.frame_answered(Admission::kDuplicate);
  backward_through(middle, 1);
  EXPECT_EQ(middle.miner->report().status.recomputed, 0u);
}

TEST(MinerRepair, ARefusalOfBeforeItGotItsWorkBackEndsNothing) {
  MinerHarness middle(patient_spec(3), 1);
  middle.start();
  ASSERT_EQ(middle.forward_arrives(1), Admission::kAccepted);
  middle.finish_job();  // on its way downstream
  EXPECT_EQ(middle.forward_arrives(1, 0, 0, 0, {0, 2}), Admission::kDuplicate);
  middle.frame_answered(Admission::kTakenOver);
  EXPECT_EQ(middle.miner->in_flight(), 1u);
  ASSERT_EQ(middle.sends.size(), 1u);
  EXPECT_EQ(middle.sends[0].frame.repairs, (std::vector<uint8_t>{0, 2, 0}));
  middle.frame_answered(Admission::kTakenOver);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
}

}  // namespace
}  // namespace tessera::test
