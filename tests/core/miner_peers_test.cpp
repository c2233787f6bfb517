// Whom a miner suspects, when, and what that costs; and the early input gradient.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::Direction;
using core::miner_effect::Backward;
using core::miner_effect::Forward;

core::RunSpec real_times(uint32_t stages) {
  core::RunSpec spec = small_spec(stages, 2);
  spec.timeouts = {.lease_ms = 60000,
                   .miner_lost_ms = 5000,
                   .peer_ms = 5000,
                   .merge_phase_ms = 20000,
                   .sync_ms = 200};
  return spec;
}

void hand_on(MinerHarness& head, MicrobatchId id) {
  head.lease(id);
  head.tokens_read();
  head.finish_job();
  head.frame_answered(Admission::kAccepted);
}

void give_back(MinerHarness& head, MicrobatchId id, uint32_t from = 0) {
  ASSERT_EQ(head.backward_arrives(id, 0, from), Admission::kAccepted);
  while (!head.jobs.empty()) head.finish_job();
}

void tick_for(MinerHarness& miner, TimeMs ms) {
  for (TimeMs passed = 0; passed < ms; passed += 20) miner.pass(20);
}

TEST(PeerWatch, ASilentHolderIsAskedAndLeftOutWithinItsDeadline) {
  MinerHarness head(real_times(2), 0);
  head.start();
  // Enough answers to know how fast it is.
  for (MicrobatchId id = 0; id < 10; ++id) {
    hand_on(head, id);
    ASSERT_LE(head.probes.size(), 1u);
    if (!head.probes.empty()) head.probe_answered(true, {0, 60, 10});
    give_back(head, id);
    tick_for(head, 1000);
    head.probes.clear();
  }
  hand_on(head, 10);
  head.probe_answered(true, {0, 60, 10});
  tick_for(head, 240);
  EXPECT_TRUE(head.probes.empty());
  tick_for(head, 20);
  ASSERT_EQ(head.probes.size(), 1u);
  EXPECT_EQ(head.probes[0].peer.miner, 10u);
  EXPECT_EQ(head.probes[0].timeout_ms, 500u);  // the floor: it answers at once as a rule
  tick_for(head, 480);
  EXPECT_EQ(head.probes.size(), 1u);  // one at a time
  head.probe_answered(false);         // the link says so after the timeout
  EXPECT_TRUE(head.was_said("miner 10 is left out: it does not answer when asked"));
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 11u);
}

TEST(PeerWatch, ALeftOutPeerIsAskedWithGrowingPausesAndTakenBack) {
  MinerHarness head(real_times(2), 0);
  head.start();
  head.peer_broke(10);
  std::vector<TimeMs> asked;
  for (int i = 0; i < 7; ++i) {
    while (head.probes.empty()) head.pass(20);
    asked.push_back(head.now);
    head.probe_answered(false);
  }
  for (size_t i = 1; i < asked.size(); ++i) {
    EXPECT_EQ(asked[i] - asked[i - 1], std::min<TimeMs>(200 << i, 5000)) << i;
  }
  while (head.probes.empty()) head.pass(20);
  head.probe_answered(true);
  EXPECT_TRUE(head.was_said("miner 10 answers again"));
  head.lease(1);
  head.tokens_read();
  head.finish_job();
  EXPECT_EQ(head.sends.at(0).peer.miner, 10u);
}

TEST(PeerWatch, AFrameOfALeftOutPeerTakesItBack) {
  MinerHarness middle(real_times(3), 1);
  middle.start();
  middle.peer_broke(20);
  middle.arrive(middle.frame_of(9, 0, Direction::kBackward, 1), 20);  // of nothing: but it lives
  EXPECT_TRUE(middle.was_said("miner 20 answers again"));
}

TEST(PeerWatch, AFalseSuspicionMakesMorePatient) {
  MinerHarness head(real_times(2), 0);
  head.start();
  for (MicrobatchId id = 0; id < 10; ++id) {
    hand_on(head, id);
    while (!head.probes.empty()) head.probe_answered(true);
    give_back(head, id);
    tick_for(head, 1000);
  }
  hand_on(head, 10);
  while (!head.probes.empty()) head.probe_answered(true);
  while (head.probes.empty()) head.pass(20);
  EXPECT_EQ(head.probes[0].timeout_ms, 500u);
  head.probe_answered(false);
  head.probes.clear();
  while (head.probes.empty()) head.pass(20);
  head.probe_answered(true);
  head.sends.clear();
  hand_on(head, 11);
  head.probes.clear();
  while (head.probes.empty() || head.probes[0].peer.miner != 10) {
    head.probes.clear();
    head.pass(20);
  }
  EXPECT_GT(head.probes[0].timeout_ms, 800u);
}

TEST(PeerWatch, AnOverdueGradientIsAskedForTwiceBeforeAnotherMinerGetsTheWork) {
  MinerHarness head(real_times(2), 0);
  head.start();
  for (MicrobatchId id = 0; id < 10; ++id) {
    hand_on(head, id);
    while (!head.probes.empty()) head.probe_answered(true);
    head.pass(20);
    give_back(head, id);
  }
  const auto alive_for = [&](TimeMs ms) {
    for (TimeMs passed = 0; passed < ms; passed += 20) {
      head.pass(20);
      while (!head.probes.empty()) head.probe_answered(true);
    }
  };
  hand_on(head, 10);
  alive_for(4980);
  EXPECT_TRUE(head.sends.empty());
  alive_for(20);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 10u);
  EXPECT_EQ(head.sends[0].frame.repairs, (std::vector<uint8_t>{0, 0}));
  head.frame_answered(Admission::kDuplicate);
  alive_for(9980);
  EXPECT_TRUE(head.sends.empty());
  alive_for(20);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 10u);
  head.frame_answered(Admission::kDuplicate);
  alive_for(20000);
  ASSERT_EQ(head.sends.size(), 1u);
  EXPECT_EQ(head.sends[0].peer.miner, 11u);
  EXPECT_EQ(head.sends[0].frame.repairs, (std::vector<uint8_t>{0, 1}));
}

// When everything takes longer, as after the death of a miner, nothing of it is done twice, and soon nothing is overdue.
TEST(PeerWatch, GradientsThatTakeLongerThanBeforeAreWaitedFor) {
  MinerHarness head(real_times(2), 0);
  head.start();
  const auto alive_for = [&](TimeMs ms) {
    for (TimeMs passed = 0; passed < ms; passed += 20) {
      head.pass(20);
      while (!head.probes.empty()) head.probe_answered(true);
    }
  };
  const auto asked_after = [&](MicrobatchId id, TimeMs ms) {
    hand_on(head, id);
    alive_for(ms);
    const size_t asked = head.sends.size();
    for (size_t i = 0; i < asked; ++i) head.frame_answered(Admission::kDuplicate);
    give_back(head, id);
    return asked;
  };
  for (MicrobatchId id = 0; id < 10; ++id) EXPECT_EQ(asked_after(id, 100), 0u);
  MicrobatchId id = 10;
  while (id < 100 && asked_after(id, 7000) == 1) ++id;
  EXPECT_GT(id, 10u);
  EXPECT_LT(id, 30u);
  EXPECT_EQ(head.miner->report().status.recomputed, 0u);
}

TEST(PeerWatch, FramesWaitNoLongerThanThePeerUsesTo) {
  MinerHarness head(real_times(2), 0);
  head.start();
  for (MicrobatchId id = 0; id < 8; ++id) {
    head.lease(id);
    head.tokens_read();
    head.finish_job();
    EXPECT_EQ(head.sends.at(0).timeout_ms, 5000u);
    head.pass(20);
    head.frame_answered(Admission::kAccepted);
    give_back(head, id);
  }
  head.lease(8);
  head.tokens_read();
  head.finish_job();
  EXPECT_EQ(head.sends.at(0).timeout_ms, 1000u);
}

TEST(PeerWatch, AProposalFarBehindTheOthersDoesNotBind) {
  MinerHarness head(real_times(2), 0);
  head.start();
  for (uint32_t replica : {0u, 1u}) {
    core::SyncAnswer what = head.empty_answer();
    what.lease_request = head.miner->report().lease_request;
    what.leases.push_back({replica, 0, 0, {0, 10 + replica}, 60000, false});
    head.answer(what);
    head.tokens_read();
    head.finish_job();
    head.frame_answered(Admission::kAccepted);
    // 900 ms of work wait at the first, nothing at the second.
    head.probe_answered(true, {replica == 0 ? 9u : 0u, 60, 100});
    give_back(head, replica, replica);
  }
  head.lease(5);
  head.tokens_read();
  head.finish_job();
  EXPECT_EQ(head.sends.at(0).peer.miner, 11u);
  // But of what a dead head held it has most likely done its part.
  head.sends.clear();
  head.lease(6, 0, 0, {}, true);
  head.tokens_read();
  head.finish_job();
  EXPECT_EQ(head.sends.at(0).peer.miner, 10u);
}

TEST(PeerHealthAnswer, SaysWhatWaitsAndWhatIsFree) {
  MinerHarness middle(small_spec(3, 2), 1);
  EXPECT_EQ(middle.miner->health().capacity, 0u);
  middle.start();
  EXPECT_EQ(middle.miner->health().capacity, 64u);
  middle.forward_arrives(1);
  middle.forward_arrives(2);
  EXPECT_EQ(middle.miner->health().queued, 1u);
  EXPECT_EQ(middle.miner->health().capacity, 62u);
  EXPECT_EQ(middle.miner->health().microbatch_ms, 0);
  middle.finish_job();
  middle.frame_answered(Admission::kAccepted);
  middle.backward_arrives(1);
  middle.finish_job();
  middle.finish_job();
  EXPECT_EQ(middle.miner->health().microbatch_ms, 10);
  middle.step(core::miner_event::DrainRequested{});
  EXPECT_EQ(middle.miner->health().capacity, 0u);
}

// ---- the backward pass in two parts
// --------------------------------------------------------------

TEST(EarlyGradient, IsSentWhileTheWeightGradientsAreComputed) {
  for (const bool answered_first : {true, false}) {
    MinerHarness tail(small_spec(2, 2), 1);
    tail.start();
    tail.forward_arrives(1);
    tail.finish_job();
    ASSERT_TRUE(tail.next_job_is<Backward>());
    tail.input_gradient_ready(1);
    ASSERT_EQ(tail.sends.size(), 1u);
    EXPECT_EQ(tail.sends[0].frame.payload, "early");
    EXPECT_EQ(tail.sends[0].frame.exponent, 4);
    if (answered_first) tail.frame_answered(Admission::kAccepted);
    EXPECT_EQ(tail.miner->in_flight(), 1u);
    EXPECT_TRUE(tail.miner->report().receipts.empty());
    tail.pass(1000);  // its lease is over, but its gradient is being accumulated
    EXPECT_EQ(tail.miner->in_flight(), 1u);
    tail.jobs.clear();
    tail.weight_gradients_done(1);
    const core::SyncRequest report = tail.miner->report();
    ASSERT_EQ(report.receipts.size(), 1u);
    EXPECT_EQ(report.receipts[0].gradient_out_hash, digest_of("early"));
    if (!answered_first) tail.frame_answered(Admission::kAccepted);
    EXPECT_EQ(tail.miner->in_flight(), 0u);
    EXPECT_TRUE(tail.sends.empty());
  }
}

TEST(EarlyGradient, ServesAReplacedUpstreamToo) {
  MinerHarness tail(small_spec(2, 2), 1);
  tail.start();
  tail.forward_arrives(1);
  tail.finish_job();
  tail.input_gradient_ready(1);
  tail.frame_answered(Admission::kAccepted);
  EXPECT_EQ(tail.forward_arrives(1, 0, 1, 0, {1, 0}), Admission::kDuplicate);
  ASSERT_EQ(tail.sends.size(), 1u);
  EXPECT_EQ(tail.sends[0].peer.miner, 1u);
  EXPECT_EQ(tail.sends[0].frame.payload, "early");
}

}  // namespace
}  // namespace tessera::test
