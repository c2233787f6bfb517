// Registration, leases and receipts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

using core::RunPhase;
using testing::HasSubstr;

TEST(Registration, WaitsForTheFirstMinersOfEveryStage) {
  ScriptedSwarm swarm(small_spec(2, 2));
  OrchestratorWorld& world = swarm.world;
  for (size_t i = 0; i < 3; ++i) {
    swarm.miners[i]->sync();
    swarm.miners[i]->sync();
    EXPECT_EQ(world.state().phase, RunPhase::kWaiting);
  }
  EXPECT_TRUE(swarm.at(0, 0).sync().leases.empty());
  EXPECT_EQ(swarm.at(0, 0).answer().reason, "the run is waiting");
  swarm.miners[3]->sync();
  EXPECT_EQ(world.state().phase, RunPhase::kWaiting);  // registered, not ready
  swarm.miners[3]->sync();
  EXPECT_EQ(world.state().phase, RunPhase::kRunning);
  EXPECT_EQ(swarm.at(0, 0).sync().leases.size(), 2u);
  EXPECT_EQ(swarm.at(1, 0).sync().reason, "");
}

TEST(Registration, GoesToTheStageWithTheFewestMinersUnlessItAsksForOne) {
  OrchestratorWorld world(small_spec(3, 1));
  ScriptedMiner wants(world, 1, 1);
  wants.join();
  EXPECT_EQ(wants.record().stage, 1u);
  std::vector<StageIndex> stages;
  for (uint64_t number = 2; number <= 6; ++number) {
    ScriptedMiner miner(world, number);
    miner.join();
    stages.push_back(miner.record().stage);
  }
  EXPECT_EQ(stages, (std::vector<StageIndex>{0, 2, 0, 1, 2}));
}

TEST(Registration, RefusalsSayHowToMendIt) {
  OrchestratorWorld world(small_spec(2, 1));
  core::Registration registration;
  registration.node = node_of(1);
  registration.address = "nowhere";
  EXPECT_EQ(world.join(registration).refusal, core::RegisterRefusal::kBadAddress);
  EXPECT_THAT(world.join(registration).message, HasSubstr("set 'advertise'"));
  registration.address = std::string(300, 'a') + ":1";
  EXPECT_EQ(world.join(registration).refusal, core::RegisterRefusal::kBadAddress);
  registration.address = "here:1";
  registration.wanted_stage = 2;
  EXPECT_EQ(world.join(registration).message, "wanted stage 2 of a run with 2 stages");
  registration.wanted_stage = 1;
  EXPECT_EQ(world.join(registration).refusal, core::RegisterRefusal::kNone);
  EXPECT_EQ(world.core().find(node_of(1), 99), nullptr);
  EXPECT_EQ(world.core().find(node_of(2), 0), nullptr);
}

TEST(Registration, PeersAreTheNeighboursOnly) {
  ScriptedSwarm swarm(small_spec(3, 2));
  swarm.start();
  const auto& peers = *swarm.at(0, 0).sync().peers;
  ASSERT_EQ(peers.size(), 2u);
  for (const core::Peer& peer : peers) {
    EXPECT_EQ(peer.stage, 1u);
    EXPECT_TRUE(peer.live);
  }
  EXPECT_EQ(swarm.at(1, 0).sync().peers->size(), 4u);
  core::SyncRequest request = swarm.at(0, 0).report();
  request.peers_version = swarm.at(0, 0).answer().peers_version;
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(swarm.at(0, 0).node(), request, &answer));
  EXPECT_FALSE(answer.peers.has_value());
  swarm.world.step(core::MinerLost{swarm.at(1, 1).index(), "silent"});
  EXPECT_FALSE(swarm.at(0, 0).sync().peers->at(1).live);
}

TEST(Leases, AreCappedAndGivenAgainForTheSameRequest) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  head.sync();
  ASSERT_EQ(head.leases.size(), 2u);
  EXPECT_EQ(head.leases[0].microbatch, 0u);
  EXPECT_EQ(head.leases[0].pathway,
            (std::vector<MinerIndex>{head.index(), swarm.at(1, 0).index()}));
  EXPECT_EQ(head.leases[0].lifetime_ms, 1000u);
  core::SyncRequest request = head.report();
  request.leases_wanted = 2;
  request.lease_request = 1;  // the answer was lost
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(head.node(), request, &answer));
  EXPECT_EQ(encode(answer.leases), encode(head.leases));
  EXPECT_EQ(swarm.world.state().leased, 2u);
  for (uint64_t number = 2; number < 9; ++number) {
    request.lease_request = number;
    request.leases_wanted = 100;
    ASSERT_TRUE(swarm.world.sync(head.node(), request, &answer));
  }
  EXPECT_EQ(swarm.world.state().leased, 4u);  // twice max_in_flight
  EXPECT_EQ(head.record().in_flight, 4u);
  const uint64_t met = head.record().lease_request;
  swarm.world.step(
      core::LeasesRequested{head.index(), met + 1, 1});  // at its cap: the number is not used up
  EXPECT_EQ(head.record().lease_request, met);
}

TEST(Leases, OnlyHeadsAndOnlyWhenEveryStageHasAReadyMiner) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.at(0, 0).leases.clear();
  core::SyncRequest request = swarm.at(1, 0).report();
  request.lease_request = 1;
  request.leases_wanted = 1;
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(swarm.at(1, 0).node(), request, &answer));
  EXPECT_EQ(answer.reason, "only head miners lease microbatches");
  swarm.world.step(core::MinerLost{swarm.at(1, 0).index(), "silent"});
  EXPECT_EQ(swarm.at(0, 0).sync().reason, "stage 1 has no ready miner");
}

TEST(Leases, ExpireAndAreIssuedAgainAsTheNextAttempt) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  head.sync();
  const core::Lease lease = head.leases.front();
  swarm.at(1, 0).receipt(lease.microbatch);  // the tail did its part
  swarm.at(1, 0).sync();
  swarm.world.pass(999);
  EXPECT_EQ(swarm.world.state().reissue.count(lease.microbatch), 0u);
  swarm.world.pass(1);
  EXPECT_EQ(swarm.world.state().reissue.count(lease.microbatch), 1u);
  EXPECT_EQ(head.record().in_flight, 0u);
  ScriptedMiner& other = swarm.at(0, 1);
  other.leases.clear();
  other.sync();
  const auto again =
      std::find_if(other.leases.begin(), other.leases.end(),
                   [&](const core::Lease& l) { return l.microbatch == lease.microbatch; });
  ASSERT_NE(again, other.leases.end());
  EXPECT_EQ(again->attempt, 1u);
  EXPECT_EQ(again->counted_stages, 2u);  // stage 1 has its gradient
  EXPECT_GE(swarm.world.state().reissued, 1u);
  other.receipt(lease.microbatch, 1);
  other.sync();
  EXPECT_EQ(swarm.world.state().open.count(lease.microbatch), 0u);
  EXPECT_EQ(swarm.world.state().done, 1u);
}

TEST(Leases, ARequestThatCouldNotBeMetStaysOpen) {
  core::RunSpec spec = small_spec(1, 1);
  spec.checkpoint.every_microbatches = 2;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  head.sync();
  while (!head.leases.empty()) {
    head.receipt(head.leases.back().microbatch);
    head.leases.pop_back();
  }
  // The same report completes the checkpoint's last microbatch and asks for more: it gets none, and
  // asks again later.
  head.habits.checkpoints = false;
  EXPECT_TRUE(head.sync().leases.empty());
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kCheckpointing);
  head.habits.checkpoints = true;
  for (int i = 0; i < 4 && swarm.world.checkpoints.empty(); ++i) head.sync();
  ASSERT_EQ(swarm.world.checkpoints.size(), 1u);
  swarm.world.step(core::CheckpointWritten{1, true, "here"});
  EXPECT_EQ(swarm.world.state().phase, RunPhase::kRunning);
  EXPECT_EQ(head.sync().leases.size(), 2u);
}

// Receipts that a report brings may open the next step: it need not wait for another report.
TEST(Leases, SynchronousRunsLeaseAStepAtATime) {
  core::RunSpec spec = small_spec(2, 1);
  spec.training.synchronous = true;
  spec.merge.enabled = false;
  ScriptedSwarm swarm(spec);
  swarm.start();
  ScriptedMiner& head = swarm.at(0, 0);
  ScriptedMiner& tail = swarm.at(1, 0);
  head.sync();
  ASSERT_EQ(head.leases.size(), 2u);
  head.leases.clear();
  EXPECT_TRUE(head.sync().leases.empty());
  for (MicrobatchId id : {0, 1}) {
    head.receipt(id);
    tail.receipt(id);
  }
  head.sync();
  EXPECT_TRUE(head.leases.empty());
  core::SyncRequest late = tail.report();
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(tail.node(), late, &answer));
  EXPECT_EQ(swarm.world.state().done, 2u);
  head.sync();
  ASSERT_EQ(head.leases.size(), 2u);
  EXPECT_EQ(head.leases[0].microbatch, 2u);
  for (MicrobatchId id : {2, 3}) {
    tail.receipt(id);
    head.receipt(id);
  }
  tail.sync();
  head.leases.clear();
  EXPECT_EQ(head.sync().leases.size(), 2u);  // in the answer to the report that completed the step
}

TEST(Receipts, CountOnceWhateverIsRepeated) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  const core::Lease lease = swarm.train_one(0);
  const core::SyncRequest report = swarm.at(1, 0).report();
  core::SyncAnswer answer;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(swarm.world.sync(swarm.at(1, 0).node(), report, &answer));
    EXPECT_EQ(answer.receipts_acknowledged, 1u);
  }
  EXPECT_EQ(swarm.at(1, 0).record().counted, 1u);
  // Another miner of the stage, and one that is too late: two gradients too many.
  swarm.at(1, 1).receipt(lease.microbatch);
  swarm.at(1, 1).sync();
  EXPECT_EQ(swarm.world.state().double_counted, 1u);
  EXPECT_EQ(swarm.at(1, 1).record().counted, 0u);
  swarm.at(0, 0).sync();
  EXPECT_EQ(swarm.world.state().done, 1u);
  swarm.at(0, 1).receipt(lease.microbatch);  // complete already
  swarm.at(0, 1).sync();
  EXPECT_EQ(swarm.world.state().double_counted, 2u);
  EXPECT_EQ(swarm.world.state().done, 1u);
}

TEST(Receipts, GapsNeverLeasedAndDxOnlyCountNothing) {
  ScriptedSwarm swarm(small_spec(2, 1));
  swarm.start();
  swarm.at(0, 0).sync();
  ScriptedMiner& tail = swarm.at(1, 0);
  tail.receipt(0);
  tail.receipt(1);
  core::SyncRequest report = tail.report();
  report.receipts.erase(report.receipts.begin());  // the first one is missing
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(tail.node(), report, &answer));
  EXPECT_EQ(answer.receipts_acknowledged, 0u);
  EXPECT_EQ(tail.record().counted, 0u);
  tail.sync();
  EXPECT_EQ(tail.record().receipts_through, 2u);
  EXPECT_EQ(tail.record().counted, 2u);
  tail.receipt(2, 0, false);
  tail.receipt(99);
  tail.sync();
  EXPECT_EQ(tail.record().receipts_through, 4u);
  EXPECT_EQ(tail.record().counted, 2u);
  EXPECT_TRUE(swarm.world.said("microbatch 99, which was never leased"));
}

TEST(Miners, ALostOnesMicrobatchesAreLeftToTheSendersAndItMayReturn) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  swarm.sync_all();
  ScriptedMiner& tail = swarm.at(1, 0);
  const uint32_t through_it = tail.record().in_flight;
  ASSERT_GT(through_it, 0u);
  swarm.world.step(core::MinerLost{tail.index(), "silent for 300 ms"});
  swarm.world.step(core::MinerLost{tail.index(), "silent for 300 ms"});  // once is enough
  EXPECT_FALSE(tail.record().live);
  swarm.world.pass(999);
  EXPECT_TRUE(swarm.world.state().reissue.empty());
  swarm.world.pass(1);
  EXPECT_GE(swarm.world.state().reissue.size(), through_it);
  EXPECT_EQ(tail.record().in_flight, 0u);
  swarm.at(0, 0).leases.clear();
  swarm.at(0, 0).sync();
  for (const core::Lease& lease : swarm.at(0, 0).leases) EXPECT_NE(lease.pathway[1], tail.index());
  tail.sync();
  EXPECT_TRUE(tail.record().live);
  EXPECT_TRUE(tail.record().ready);
}

TEST(Miners, ANewProcessStartsAnewWithoutUnderflow) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  swarm.sync_all();
  swarm.train(2);
  ScriptedMiner& tail = swarm.at(1, 0);
  const uint64_t counted = tail.record().counted;
  ASSERT_GT(counted, 0u);
  for (int round = 0; round < 3; ++round) {
    tail.restart();
    tail.sync();
    EXPECT_EQ(tail.record().stage, 1u);
    EXPECT_EQ(tail.record().counted, counted);
    EXPECT_EQ(tail.record().fresh_total(), 0u);
    EXPECT_EQ(tail.record().receipts_through, 0u);
    tail.sync();
    swarm.world.pass(100);
    swarm.world.pass(1000);
  }
  tail.sync();
  EXPECT_TRUE(tail.record().ready);
  EXPECT_EQ(swarm.world.core().find(tail.node(), tail.incarnation() - 1), nullptr);
  swarm.train(2);
  EXPECT_GT(tail.record().counted, counted);
}

TEST(Miners, OneThatDrainsIsLetGoInAnOrderlyWay) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  ScriptedMiner& tail = swarm.at(1, 1);
  tail.draining = true;
  tail.sync();
  EXPECT_FALSE(tail.record().live);
  EXPECT_EQ(tail.record().why, "left in an orderly way");
  tail.sync();
  EXPECT_FALSE(tail.record().live);
}

}  // namespace
}  // namespace tessera::test
