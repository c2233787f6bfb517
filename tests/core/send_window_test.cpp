#include "tessera/core/send_window.h"

#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::SendWindow;

TEST(SendWindow, GrowsByOneForEveryFullWindowTakenInTime) {
  SendWindow window;
  uint64_t send = 0;
  const auto round = [&](size_t frames) {
    const uint64_t first = send + 1;
    for (size_t i = 0; i < frames; ++i) window.sent(++send, 0, 1000);
    for (uint64_t s = first; s <= send; ++s) window.answered(s, 10, true);
  };
  for (int i = 0; i < 100; ++i) round(2);  // it was never full: that says nothing of the link
  EXPECT_EQ(window.limit(), 8u);
  for (uint64_t s = 0; s < 9; ++s) {
    while (window.open()) window.sent(++send, 0, 1000);
    window.answered(send, 10, true);  // the one that filled it
  }
  EXPECT_EQ(window.limit(), 9u);
  for (int i = 0; i < 100000; ++i) {
    while (window.open()) window.sent(++send, 0, 1000);
    window.answered(send, 10, true);
  }
  EXPECT_EQ(window.limit(), 64u);
}

TEST(SendWindow, IsHalvedOnceForAllThatWereUnderWay) {
  SendWindow window;
  for (uint64_t send = 1; send <= 8; ++send) window.sent(send, 0, 1000);
  EXPECT_FALSE(window.open());
  for (uint64_t send = 1; send <= 8; ++send) window.answered(send, 1000, false);
  EXPECT_EQ(window.limit(), 4u);
  for (TimeMs now = 1000; now < 5000; now += 1000) {
    window.sent(9, now, 1000);
    window.answered(9, now + 1000, false);
  }
  EXPECT_EQ(window.limit(), 1u);  // a link that takes nothing is still tried
}

TEST(SendWindow, WhatCameTooLateMakesItMorePatientUntilMuchIsInTime) {
  SendWindow window;
  EXPECT_EQ(window.patience(), 0);
  uint64_t send = 0;
  TimeMs now = 0;
  for (const TimeMs expected : {2000, 4000, 8000}) {
    window.sent(++send, now, 1000);
    window.sent(++send, now, 1000);
    now += 1000;
    window.answered(send - 1, now, false);
    window.answered(send, now, false);
    EXPECT_EQ(window.patience(), expected);
  }
  for (int i = 0; i < 200; ++i) {
    window.sent(++send, now, 1000);
    window.answered(send, ++now, true);
  }
  EXPECT_LT(window.patience(), 16);
}

TEST(SendWindow, APeerThatRefusesAtOnceSaysNothingOfTheLink) {
  SendWindow window;
  for (uint64_t send = 1; send <= 8; ++send) window.sent(send, 0, 1000);
  for (uint64_t send = 1; send <= 8; ++send) window.answered(send, 5, false);
  EXPECT_EQ(window.limit(), 8u);
  EXPECT_TRUE(window.open());
}

TEST(SendWindow, AnAnswerThatNeverComesDoesNotHoldItsPlaceForEver) {
  SendWindow window;
  for (uint64_t send = 1; send <= 8; ++send) window.sent(send, 0, 1000);
  window.forget(1000 + SendWindow::kForgottenMs);
  EXPECT_FALSE(window.open());
  window.forget(1001 + SendWindow::kForgottenMs);
  EXPECT_EQ(window.under_way(), 0u);
}

// ---- at the miner ------------------------------------------------------------------------------

class MinerSends : public testing::Test {
 protected:
  static core::RunSpec spec() {
    core::RunSpec spec = small_spec(3, 2);
    spec.timeouts.lease_ms = 60000;
    spec.timeouts.peer_ms = 5000;
    return spec;
  }
  MinerSends() : harness(spec(), 1) {
    harness.start();
    for (MicrobatchId id = 0; id < 20; ++id) forward_through(harness, id);
  }
  MinerHarness harness;
};

TEST_F(MinerSends, WhatADeadPeerHeldGoesOutAsFastAsItIsTaken) {
  harness.peer_broke(20);
  EXPECT_EQ(harness.sends.size(), 8u);
  size_t taken = 0;
  while (!harness.sends.empty()) {
    EXPECT_LE(harness.sends.size(), 9u);
    EXPECT_EQ(harness.sends.front().peer.miner, 21u);
    harness.frame_answered(Admission::kAccepted);
    ++taken;
  }
  EXPECT_EQ(taken, 20u);
}

TEST_F(MinerSends, GradientsGoBeforeActivationsThatWait) {
  harness.peer_broke(20);
  ASSERT_EQ(harness.sends.size(), 8u);
  for (MicrobatchId id = 0; id < 8; ++id) {  // the new holder is quicker than its answers
    ASSERT_EQ(harness.backward_arrives(id, 0, 1), Admission::kAccepted);
  }
  const size_t before = harness.sends.size();  // their places were taken by others of the dead peer
  EXPECT_EQ(before, 16u);
  harness.finish_job();
  EXPECT_EQ(harness.sends.size(), before);  // the gradient waits with the last four
  harness.sends.erase(harness.sends.begin(), harness.sends.begin() + 8);
  harness.frame_answered(Admission::kAccepted);
  ASSERT_EQ(harness.sends.size(), 8u);
  EXPECT_EQ(harness.sends.back().frame.direction, core::Direction::kBackward);
  harness.frame_answered(Admission::kAccepted);
  EXPECT_EQ(harness.sends.back().frame.direction, core::Direction::kForward);
}

// It took frames in no time and then became a thousand times slower: what it takes is learnt again.
TEST_F(MinerSends, ALinkThatBecameSlowGetsItsFramesThroughAgain) {
  constexpr TimeMs kFrameMs = 900;  // on the link now; a peer gets one second
  for (MicrobatchId id = 0; id < 20; ++id) ASSERT_EQ(harness.backward_arrives(id), Admission::kAccepted);
  while (!harness.jobs.empty() || !harness.sends.empty()) {
    if (!harness.jobs.empty()) harness.finish_job();
    if (!harness.sends.empty()) harness.frame_answered(Admission::kAccepted);
  }
  ASSERT_EQ(harness.miner->in_flight(), 0u);
  const TimeMs begin = harness.now;
  TimeMs free_at = begin;
  std::map<uint64_t, std::pair<TimeMs, TimeMs>> leaves_and_until;
  size_t through = 0;
  MicrobatchId next = 100;
  for (; harness.now < begin + 60000; harness.now += 100) {
    harness.step(core::miner_event::Ticked{});
    if (harness.miner->in_flight() < 8 && harness.forward_arrives(next++) == Admission::kAccepted) {
      while (!harness.jobs.empty()) harness.finish_job();
    }
    while (!harness.sends.empty()) {
      const auto send = std::move(harness.sends.front());
      harness.sends.pop_front();
      const TimeMs until = harness.now + send.timeout_ms;
      const TimeMs leaves = std::max(free_at, harness.now) + kFrameMs;
      free_at = leaves <= until ? leaves : std::max(free_at, std::min(until, leaves));
      leaves_and_until[send.send] = {leaves, until};
    }
    while (!harness.probes.empty()) harness.probe_answered(true);
    for (auto frame = leaves_and_until.begin(); frame != leaves_and_until.end();) {
      const auto [leaves, until] = frame->second;
      const uint64_t send = frame->first;
      const bool in_time = leaves <= until;
      if (harness.now < (in_time ? leaves : until)) {
        ++frame;
        continue;
      }
      frame = leaves_and_until.erase(frame);
      through += in_time;
      harness.step(core::miner_event::FrameAnswered{send, in_time ? Admission::kAccepted : Admission::kUnreachable});
    }
  }
  EXPECT_GT(through, 7u);
}

// A link that is slower than the peers' deadlines: nobody is asked again for what was not even sent.
TEST_F(MinerSends, OverdueGradientsAreNotAskedForWhileTheLinkIsFull) {
  harness.peer_broke(20);
  while (harness.sends.size() > 0 && harness.sends.front().frame.microbatch < 8) {
    harness.frame_answered(Admission::kAccepted);
  }
  ASSERT_EQ(harness.sends.size(), 8u);
  harness.now += 50000;  // their gradients are overdue by now
  harness.step(core::miner_event::Ticked{});
  EXPECT_EQ(harness.sends.size(), 8u);
}

}  // namespace
}  // namespace tessera::test
