// A microbatch's way through a miner.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"
#include "tessera/core/payload_name.h"

namespace tessera::test {
namespace {

using core::Admission;
using core::Direction;
using core::MicrobatchKey;
using core::Receipt;
using core::miner_effect::Backward;
using core::miner_effect::Forward;
using core::miner_effect::OptimizerStep;

TEST(Head, TakesALeaseFromTokensToReceipt) {
  MinerHarness head(small_spec(3, 2), 0);
  head.start();
  EXPECT_EQ(head.miner->report().leases_wanted, 2u);
  head.lease(5);
  ASSERT_EQ(head.reads.size(), 1u);
  EXPECT_EQ(head.reads[0].key, (MicrobatchKey{5, 0}));
  EXPECT_EQ(head.miner->report().leases_wanted, 1u);
  EXPECT_EQ(head.miner->report().lease_request, 2u);
  head.tokens_read();
  ASSERT_TRUE(head.next_job_is<Forward>());
  head.finish_job();
  ASSERT_EQ(head.sends.size(), 1u);
  const core::Frame& frame = head.sends[0].frame;
  EXPECT_EQ(head.sends[0].peer.miner, 10u);
  EXPECT_EQ(head.sends[0].timeout_ms, 100u);
  EXPECT_EQ(frame.direction, Direction::kForward);
  EXPECT_EQ(frame.boundary, 0u);
  EXPECT_EQ(frame.microbatch, 5u);
  EXPECT_EQ(frame.tokens.size(), 10u);
  EXPECT_EQ(frame.payload, "activation");
  EXPECT_EQ(frame.exponent, 3);
  EXPECT_EQ(frame.pathway, (std::vector<MinerIndex>{0, 10, 20}));
  EXPECT_EQ(frame.lifetime_ms, 1000u);
  EXPECT_EQ(frame.run, head.miner->run_tag());
  head.frame_answered(Admission::kAccepted);
  EXPECT_EQ(head.backward_arrives(5), Admission::kAccepted);
  ASSERT_TRUE(head.next_job_is<Backward>());
  EXPECT_TRUE(std::get<Backward>(head.jobs.front()).accumulate);
  EXPECT_EQ(std::get<Backward>(head.jobs.front()).output_gradient.bytes, "payload");
  head.finish_job();
  EXPECT_TRUE(head.sends.empty());  // nobody is upstream of a head
  EXPECT_EQ(head.miner->in_flight(), 0u);
  EXPECT_TRUE(head.miner->report_is_urgent());  // it can lease again
  const Receipt receipt = head.miner->report().receipts.at(0);
  EXPECT_EQ(receipt.sequence, 1u);
  EXPECT_EQ(receipt.incarnation, 77u);
  EXPECT_EQ(receipt.microbatch, 5u);
  EXPECT_EQ(receipt.upstream, kNoMiner);
  EXPECT_EQ(receipt.downstream, 10u);
  EXPECT_TRUE(receipt.accumulated);
  EXPECT_EQ(receipt.output_hash, digest_of("activation"));
  EXPECT_EQ(receipt.gradient_in_hash, core::name_of(core::BoundaryPayload{.exponent = 0, .bytes = "payload"}));
  EXPECT_EQ(receipt.unix_ms, 1000100);
  const Digest signed_hash = digest_of(receipt.signed_bytes("0123456789abcdef"));
  EXPECT_TRUE(
      std::equal(signed_hash.bytes.begin(), signed_hash.bytes.end(), receipt.signature.begin()));
}

TEST(Tail, TurnsAroundAtOnceAndReportsTheLoss) {
  MinerHarness tail(small_spec(3, 2), 2);
  tail.start();
  EXPECT_EQ(tail.miner->report().leases_wanted, 0u);
  EXPECT_EQ(tail.forward_arrives(7, 0, 1), Admission::kAccepted);
  tail.finish_job();
  ASSERT_TRUE(tail.next_job_is<Backward>());
  tail.finish_job();
  ASSERT_EQ(tail.sends.size(), 1u);
  EXPECT_EQ(tail.sends[0].peer.miner, 11u);  // back to whom it came from
  EXPECT_EQ(tail.sends[0].frame.direction, Direction::kBackward);
  EXPECT_EQ(tail.sends[0].frame.boundary, 1u);
  EXPECT_EQ(tail.sends[0].frame.payload, "gradient");
  EXPECT_TRUE(tail.sends[0].frame.tokens.empty());
  const Receipt receipt = tail.miner->report().receipts.at(0);
  EXPECT_EQ(receipt.loss, 2.5f);
  EXPECT_EQ(receipt.upstream, 11u);
  EXPECT_EQ(receipt.downstream, kNoMiner);
  tail.frame_answered(Admission::kAccepted);
  EXPECT_EQ(tail.miner->in_flight(), 0u);
}

TEST(Middle, HandsForwardAndBackward) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1);
  EXPECT_EQ(middle.miner->in_flight(), 1u);
  backward_through(middle, 1);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  const core::SyncRequest report = middle.miner->report();
  EXPECT_EQ(report.receipts.at(0).input_hash, core::name_of(core::BoundaryPayload{.exponent = 0, .bytes = "payload"}));
  EXPECT_EQ(report.status.boundary_tensors_sent, 2u);
  EXPECT_GT(report.status.forward_ms, 0);
  EXPECT_GT(report.status.backward_ms, 0);
}

TEST(SingleStage, NeedsNoPeers) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  lone.lease(0);
  lone.tokens_read();
  lone.finish_job();
  lone.finish_job();
  EXPECT_EQ(lone.miner->report().receipts.size(), 1u);
  EXPECT_TRUE(lone.sends.empty());
}

TEST(MinerOptimizer, StepsAfterItsMicrobatchesBeforeAnythingElse) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1);
  forward_through(middle, 2);
  backward_through(middle, 1);
  EXPECT_TRUE(middle.jobs.empty());
  middle.backward_arrives(2);
  EXPECT_EQ(middle.forward_arrives(3),
            Admission::kAccepted);  // waits behind the backward and the step
  middle.finish_job();
  ASSERT_TRUE(middle.next_job_is<OptimizerStep>());
  EXPECT_DOUBLE_EQ(std::get<OptimizerStep>(middle.jobs.front()).learning_rate,
                   learning_rate_at(middle.spec.training, 0));
  middle.finish_job();
  ASSERT_TRUE(middle.next_job_is<Forward>());
  const core::SyncRequest report = middle.miner->report();
  EXPECT_EQ(report.status.local_steps, 1u);
  EXPECT_EQ(report.status.schedule_step, 1u);
  EXPECT_EQ(report.receipts.at(0).local_step, 0u);
  EXPECT_EQ(report.receipts.at(0).order, 0u);
  EXPECT_EQ(report.receipts.at(1).local_step, 0u);
  EXPECT_EQ(report.receipts.at(1).order, 1u);
}

TEST(MinerOptimizer, AStepWhoseGradientWasNotFiniteIsSkippedNotRepeated) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  for (MicrobatchId id : {1, 2}) {
    forward_through(middle, id);
    middle.backward_arrives(id);
    middle.finish_job();
    middle.frame_answered(Admission::kAccepted);
  }
  ASSERT_TRUE(middle.next_job_is<OptimizerStep>());
  middle.jobs.pop_front();
  middle.step(core::miner_event::StepDone{false, 0, middle.weight_version, "not finite"});
  EXPECT_TRUE(middle.jobs.empty());
  EXPECT_EQ(middle.miner->report().status.local_steps, 1u);
  EXPECT_TRUE(middle.was_said("optimizer step 0 skipped: not finite"));
}

TEST(MinerSchedule, BackwardComesBeforeForwardAndOneJobIsOutAtATime) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 1);
  EXPECT_EQ(middle.forward_arrives(2), Admission::kAccepted);
  EXPECT_EQ(middle.forward_arrives(3), Admission::kAccepted);
  EXPECT_EQ(middle.backward_arrives(1), Admission::kAccepted);
  ASSERT_EQ(middle.jobs.size(), 1u);
  middle.finish_job();
  ASSERT_EQ(middle.jobs.size(), 1u);
  EXPECT_TRUE(middle.next_job_is<Backward>());
  middle.finish_job();
  EXPECT_TRUE(middle.next_job_is<Forward>());
}

TEST(MinerPeers, TheGradientMayOvertakeTheAnswer) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  ASSERT_EQ(middle.forward_arrives(1), Admission::kAccepted);
  middle.finish_job();
  ASSERT_EQ(middle.sends.size(), 1u);
  EXPECT_EQ(middle.backward_arrives(1), Admission::kAccepted);
  EXPECT_EQ(middle.backward_arrives(1), Admission::kDuplicate);
  middle.frame_answered(Admission::kAccepted);  // late: changes nothing
  ASSERT_TRUE(middle.next_job_is<Backward>());
  middle.finish_job();
  middle.frame_answered(Admission::kAccepted);
  EXPECT_EQ(middle.miner->in_flight(), 0u);
  EXPECT_EQ(middle.miner->report().status.boundary_tensors_sent, 2u);
  EXPECT_EQ(middle.backward_arrives(1), Admission::kUnknownMicrobatch);
}

TEST(MinerPeers, ARefusedFrameGoesToAnother) {
  for (const Admission refusal : {Admission::kFull, Admission::kNotReady, Admission::kWrongStage}) {
    MinerHarness middle(small_spec(3, 2), 1);
    middle.start();
    middle.forward_arrives(1);
    middle.finish_job();
    EXPECT_EQ(middle.sends.at(0).peer.miner, 20u);
    middle.frame_answered(refusal);
    ASSERT_EQ(middle.sends.size(), 1u);
    EXPECT_EQ(middle.sends[0].peer.miner, 21u);
    middle.frame_answered(refusal);
    EXPECT_TRUE(middle.sends.empty());
    middle.pass(49);
    EXPECT_TRUE(middle.sends.empty());
    middle.pass(1);
    ASSERT_EQ(middle.sends.size(), 1u);  // a new round
    EXPECT_EQ(middle.sends[0].peer.miner, 20u);
    middle.frame_answered(Admission::kAccepted);
    EXPECT_EQ(middle.backward_arrives(1, 0, 1),
              Admission::kUnknownMicrobatch);  // not from whom it went to
    EXPECT_EQ(middle.backward_arrives(1, 0, 0), Admission::kAccepted);
  }
}

TEST(MinerPeers, OneThatDoesNotAnswerIsLeftOutUntilItAnswersAProbe) {
  core::RunSpec spec = small_spec(3, 2);
  spec.timeouts.lease_ms = 60000;
  MinerHarness patient(spec, 1);
  patient.start();
  patient.forward_arrives(1);
  patient.finish_job();
  patient.probes.clear();
  patient.frame_answered(Admission::kUnreachable);
  EXPECT_EQ(patient.sends.at(0).peer.miner, 21u);
  patient.frame_answered(Admission::kAccepted);
  EXPECT_TRUE(
      patient.was_said("miner 20 is left out: it did not answer to a frame in time"));
  patient.forward_arrives(2);
  patient.finish_job();
  EXPECT_EQ(patient.sends.at(0).peer.miner, 21u);  // proposed or not
  patient.frame_answered(Admission::kAccepted);
  patient.miner->step(patient.now, core::miner_event::ProbeAnswered{1, true, {}});  // of 20
  EXPECT_EQ(patient.miner->in_flight(), 2u);
  patient.forward_arrives(3);
  patient.finish_job();
  EXPECT_EQ(patient.sends.at(0).peer.miner, 20u);
}

TEST(MinerPeers, AWordFromTheOrchestratorEndsASuspension) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  middle.forward_arrives(1);
  middle.finish_job();
  middle.frame_answered(Admission::kUnreachable);
  middle.frame_answered(Admission::kUnreachable);
  EXPECT_TRUE(middle.sends.empty());
  std::vector<core::Peer> peers = middle.all_peers();
  middle.give_peers(peers);  // nothing new about them
  middle.pass(60);
  EXPECT_TRUE(middle.sends.empty());
  for (core::Peer& peer : peers) {
    if (peer.miner == 21) peer.address = "elsewhere:1";
  }
  middle.give_peers(peers);
  middle.pass(60);
  ASSERT_EQ(middle.sends.size(), 1u);
  EXPECT_EQ(middle.sends[0].peer.address, "elsewhere:1");
}

TEST(MinerPeers, DeadOnesAndThoseWithTheMostWorkAreAvoided) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  std::vector<core::Peer> peers = middle.all_peers(3);
  for (core::Peer& peer : peers) {
    if (peer.miner == 20) peer.live = false;  // the proposed one
  }
  middle.give_peers(peers);
  std::map<MinerIndex, int> sent;
  for (MicrobatchId id = 1; id <= 4; ++id) {
    middle.forward_arrives(id);
    middle.finish_job();
    sent[middle.sends.at(0).peer.miner]++;
    middle.frame_answered(Admission::kAccepted);
  }
  EXPECT_EQ(sent, (std::map<MinerIndex, int>{{21, 2}, {22, 2}}));
}

TEST(MinerPeers, AGradientIsHandedBackUntilUpstreamHasIt) {
  MinerHarness tail(small_spec(2, 2), 1);
  tail.start();
  tail.forward_arrives(1);
  tail.finish_job();
  tail.finish_job();
  for (const Admission refusal : {Admission::kFull, Admission::kNotReady}) {
    tail.frame_answered(refusal);
    EXPECT_TRUE(tail.sends.empty());
    tail.pass(200);
    ASSERT_EQ(tail.sends.size(), 1u);
  }
  tail.frame_answered(Admission::kUnreachable);
  tail.pass(200);
  EXPECT_TRUE(tail.sends.empty());  // left out until it answers
  tail.probe_answered(true);
  tail.pass(200);
  ASSERT_EQ(tail.sends.size(), 1u);
  tail.frame_answered(Admission::kUnknownMicrobatch);  // it no longer wants it
  EXPECT_EQ(tail.miner->in_flight(), 0u);
  EXPECT_EQ(tail.miner->report().receipts.size(), 1u);
}

// A frame that was on its way for more than max_staleness of its sender's epochs is refused; another sender's are not.
TEST(MinerAdmission, AFrameOlderThanTheAllowedStalenessIsRefused) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  const Epoch allowed = middle.spec.merge.max_staleness;
  const auto arrive = [&](MicrobatchId id, Epoch epoch, MinerIndex sender) {
    core::Frame frame = middle.frame_of(id, 0, Direction::kForward, 0);
    frame.epoch = epoch;
    middle.sign_lease(&frame);
    return middle.arrive(frame, sender);
  };
  EXPECT_EQ(arrive(1, allowed + 5, 0), Admission::kAccepted);
  EXPECT_EQ(arrive(2, 5, 0), Admission::kAccepted);
  EXPECT_EQ(arrive(3, 4, 0), Admission::kStaleEpoch);
  EXPECT_EQ(arrive(4, 0, 1), Admission::kAccepted);
}

TEST(MinerAdmission, OnlyFromANeighbourForThisStageAndWhenReady) {
  MinerHarness middle(small_spec(3, 2), 1);
  EXPECT_EQ(middle.forward_arrives(1), Admission::kNotReady);
  EXPECT_EQ(middle.backward_arrives(1), Admission::kWrongStage);
  middle.start();
  EXPECT_EQ(middle.arrive(middle.frame_of(1, 0, Direction::kForward, 1), 0),
            Admission::kWrongStage);
  EXPECT_EQ(middle.arrive(middle.frame_of(1, 0, Direction::kBackward, 0), 20),
            Admission::kWrongStage);
  EXPECT_EQ(middle.arrive(middle.frame_of(1, 0, Direction::kForward, 0), 5),
            Admission::kNotReady);  // unknown
  EXPECT_EQ(middle.arrive(middle.frame_of(1, 0, Direction::kForward, 0), 20),
            Admission::kNotReady);  // downstream
  EXPECT_EQ(middle.backward_arrives(1), Admission::kUnknownMicrobatch);
  EXPECT_EQ(middle.miner->report().status.frames_refused, 7u);
}

TEST(MinerAdmission, IsBoundedAndAGradientAlwaysHasRoom) {
  MinerHarness middle(small_spec(3, 2), 1);
  middle.start();
  forward_through(middle, 0);
  MicrobatchId id = 1;
  while (middle.forward_arrives(id) == Admission::kAccepted) ++id;
  EXPECT_EQ(id, 64u);
  EXPECT_EQ(middle.forward_arrives(id), Admission::kFull);
  EXPECT_EQ(middle.backward_arrives(0), Admission::kAccepted);
}

}  // namespace
}  // namespace tessera::test
