// Runs of real nodes in which something breaks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "support/node_swarm.h"
#include "tessera/base/files.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;
using core::RunPhase;

bool finished(const OrchestratorState& state) { return state.phase == RunPhase::kFinished; }

bool merged(const OrchestratorState& state) {
  return std::all_of(state.stages.begin(), state.stages.end(),
                     [](const core::StageRecord& s) { return s.epoch >= 1; });
}

void expect_nothing_lost(NodeSwarm& swarm) {
  ASSERT_TRUE(swarm.journal->wait(finished));
  const OrchestratorState state = swarm.journal->state();
  EXPECT_EQ(state.done, swarm.spec.total_microbatches());
  for (const core::StageRecord& stage : state.stages) EXPECT_EQ(stage.replica_mismatches, 0u);
}

void expect_same_files(NodeSwarm& swarm, size_t a, size_t b) {
  EXPECT_TRUE(swarm.miner_result(a).ok());
  EXPECT_TRUE(swarm.miner_result(b).ok());
  EXPECT_FALSE(swarm.stage_state(a).empty());
  EXPECT_EQ(swarm.stage_state(a), swarm.stage_state(b));
}

uint64_t repaired_receipts(NodeSwarm& swarm) {
  uint64_t repaired = 0;
  for (const core::Event& event : swarm.journal->events()) {
    if (const auto* arrived = std::get_if<core::ReceiptsArrived>(&event)) {
      for (const core::Receipt& receipt : arrived->receipts) repaired += receipt.repaired;
    }
  }
  return repaired;
}

TEST(SwarmFaults, ARunSurvivesAKilledMinerAndTakesItsNextProcess) {
  NodeSwarm swarm(node_spec(3, 2, 70));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait(merged));
  const uint64_t done = swarm.journal->state().done;
  swarm.kill_miner(3);  // in the middle
  ASSERT_TRUE(swarm.journal->wait([&](const OrchestratorState& s) { return s.done >= done + 30; }));
  swarm.restart_miner(3);
  const NodeId node = swarm.node(3);
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& s) {
    const core::MinerRecord& miner = s.miners[s.by_node.at(node)];
    return finished(s) || (miner.live && miner.ready && miner.fresh_total() > 0);
  }));
  expect_nothing_lost(swarm);
  expect_same_files(swarm, 2, 3);
}

TEST(SwarmFaults, AHeadMayDieWithItsLeases) {
  core::RunSpec spec = node_spec(2, 2, 60);
  spec.timeouts.lease_ms = 1000;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& s) { return s.done >= 20; }));
  swarm.kill_miner(0);
  expect_nothing_lost(swarm);
  expect_same_files(swarm, 2, 3);
}

// It holds its place at the orchestrator, but no frame reaches it: everyone else routes around it.
TEST(SwarmFaults, AMinerThatPeersCannotReachIsRoutedAround) {
  core::RunSpec spec = node_spec(3, 2, 40);
  spec.timeouts.peer_ms = 50;
  spec.timeouts.lease_ms = 1500;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& s) { return s.done >= 20; }));
  swarm.network.cut(swarm.address(2), true);
  const uint64_t done = swarm.journal->state().done;
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& s) { return s.done >= done + 40; }));
  swarm.network.cut(swarm.address(2), false);
  expect_nothing_lost(swarm);
  EXPECT_GT(repaired_receipts(swarm), 0u);  // what it was given others did, within the same attempt
  expect_same_files(swarm, 2, 3);
}

TEST(SwarmFaults, TheOrchestratorGoesOnFromItsJournal) {
  NodeSwarm swarm(node_spec(2, 2, 80));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait(merged));
  for (int crash = 0; crash < 2; ++crash) {
    const uint64_t done = swarm.journal->state().done;
    swarm.crash_orchestrator();
    const OrchestratorState before = swarm.journal->state();
    ASSERT_TRUE(swarm.open_orchestrator().ok());
    const OrchestratorState after = swarm.journal->state();
    EXPECT_EQ(after.done, before.done);
    EXPECT_EQ(after.stages[0].epoch, before.stages[0].epoch);
    ASSERT_TRUE(
        swarm.journal->wait([&](const OrchestratorState& s) { return s.done >= done + 30; }));
  }
  expect_nothing_lost(swarm);
  // The same processes all the way: nobody had to start again.
  std::map<NodeId, std::set<uint64_t>> incarnations;
  for (const core::Event& event : swarm.journal->events()) {
    if (const auto* joined = std::get_if<core::MinerRegistered>(&event)) {
      incarnations[joined->registration.node].insert(joined->registration.incarnation);
    }
  }
  for (const auto& [node, processes] : incarnations) EXPECT_EQ(processes.size(), 1u);
  expect_same_files(swarm, 0, 1);
  expect_same_files(swarm, 2, 3);
}

TEST(SwarmFaults, AMinerThatDrainsLeavesNothingBehind) {
  NodeSwarm swarm(node_spec(2, 2, 50));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& s) { return s.done >= 20; }));
  swarm.stop_miner(1);
  const StatusOr<std::string> why = swarm.miner_result(1);
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_THAT(*why, testing::StartsWith("stopped; "));
  const NodeId node = swarm.node(1);
  EXPECT_FALSE(swarm.journal->state().miners[swarm.journal->state().by_node.at(node)].live);
  expect_nothing_lost(swarm);
}

// Killed with its folder kept: what it did is not lost but for the steps since its last own
// checkpoint.
TEST(SwarmFaults, AKilledMinerGoesOnFromItsOwnCheckpoint) {
  core::RunSpec spec = node_spec(2, 2, 90);
  spec.training.local_checkpoint_steps = 1;
  spec.merge.min_microbatches = 1000;  // no merge changes the base under it
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  const auto record_of = [&](const OrchestratorState& s) {
    return s.miners[s.by_node.at(swarm.node(3))];
  };
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& s) { return s.miners.size() == 4; }));
  ASSERT_TRUE(swarm.journal->wait(
      [&](const OrchestratorState& s) { return record_of(s).local_steps >= 4; }));
  const uint64_t incarnation = record_of(swarm.journal->state()).registration.incarnation;
  swarm.kill_miner(3);
  ASSERT_TRUE(file_exists(swarm.folder(3) + "/local_checkpoint.bin"));
  swarm.restart_miner(3);
  // Its first receipts go into step 1: all of before is step 0.
  ASSERT_TRUE(swarm.journal->wait([&](const OrchestratorState& s) {
    const core::MinerRecord& miner = record_of(s);
    return finished(s) ||
           (miner.registration.incarnation != incarnation && miner.fresh_total() > 0);
  }));
  EXPECT_EQ(record_of(swarm.journal->state()).fresh.count(0), 0u);
  expect_nothing_lost(swarm);
}

// One whose uploads never arrive at the store spoils a merge once; then the others merge without
// it.
TEST(SwarmFaults, UploadsThatAreLostDoNotStallTheMerges) {
  core::RunSpec spec = node_spec(1, 3, 40);
  spec.timeouts.merge_phase_ms = 300;
  NodeSwarm swarm(spec);
  LosingBlobs losing(swarm.blobs);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_miner(0);
  swarm.start_miner(0);
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& s) { return s.miners.size() == 2; }));
  const size_t loser =
      swarm.start_miner(0, &losing);  // not the first: that one publishes the state
  ASSERT_TRUE(
      swarm.journal->wait([](const OrchestratorState& s) { return s.stages[0].epoch >= 1; }));
  losing.loses = true;
  const NodeId node = swarm.node(loser);
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& s) {
    return finished(s) || s.miners[s.by_node.at(node)].spoiled_merge > 0;
  }));
  const Epoch epoch = swarm.journal->state().stages[0].epoch;
  EXPECT_GE(swarm.journal->state().stages[0].merges_aborted, 1u);
  EXPECT_TRUE(
      swarm.journal->wait([&](const OrchestratorState& s) { return s.stages[0].epoch > epoch; }));
  losing.loses = false;
  expect_nothing_lost(swarm);
  expect_same_files(swarm, 0, 1);
  expect_same_files(swarm, loser, 1);
}

}  // namespace
}  // namespace tessera::test
