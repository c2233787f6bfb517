// Whole runs of real nodes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/node_swarm.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;
using core::RunPhase;
using testing::HasSubstr;

bool at_epoch(const OrchestratorState& state, Epoch epoch) {
  return std::all_of(state.stages.begin(), state.stages.end(),
                     [&](const core::StageRecord& stage) { return stage.epoch >= epoch; });
}

// The run is finished, nothing is lost, and everyone heard of it.
void expect_finished(NodeSwarm& swarm) {
  ASSERT_TRUE(swarm.journal->wait(
      [](const OrchestratorState& state) { return state.phase == RunPhase::kFinished; }));
  const OrchestratorState state = swarm.journal->state();
  EXPECT_EQ(state.done, swarm.spec.total_microbatches());
  EXPECT_TRUE(state.open.empty());
  for (const core::StageRecord& stage : state.stages) {
    EXPECT_EQ(stage.replica_mismatches, 0u);
    EXPECT_TRUE(stage.state_published);
  }
  const StatusOr<std::string> why = swarm.orchestrator_result();
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_EQ(*why, "the run is finished");
}

// The files of all live replicas of a stage are one and the same, and what the run's ledger names.
void expect_identical_replicas(NodeSwarm& swarm, const std::vector<size_t>& miners) {
  const OrchestratorState state = swarm.journal->state();
  std::map<StageIndex, std::string> files;
  for (const size_t number : miners) {
    const core::MinerRecord& record = state.miners.at(state.by_node.at(swarm.node(number)));
    const std::string file = swarm.stage_state(number);
    ASSERT_GT(file.size(), 20u) << "miner " << number;
    const auto [first, is_first] = files.emplace(record.stage, file);
    EXPECT_TRUE(is_first || first->second == file)
        << "miner " << number << " of stage " << record.stage;
    const std::vector<float> values = node::values_of(std::string_view(file).substr(20));
    const std::vector<float> base(values.begin(),
                                  values.begin() + static_cast<int64_t>(values.size() / 2));
    const std::vector<float> momentum(values.begin() + static_cast<int64_t>(values.size() / 2),
                                      values.end());
    EXPECT_EQ(*node::name_stage_state(base, momentum), state.stages[record.stage].state);
  }
  EXPECT_EQ(files.size(), state.stages.size());
}

std::vector<float> losses(const MemoryJournal& journal, StageIndex tail) {
  std::vector<float> losses;
  for (const core::Event& event : journal.events()) {
    const auto* arrived = std::get_if<core::ReceiptsArrived>(&event);
    if (arrived == nullptr) continue;
    for (const core::Receipt& receipt : arrived->receipts) {
      if (receipt.stage == tail) losses.push_back(receipt.loss);
    }
  }
  return losses;
}

TEST(Swarm, ThreeStagesOfTwoMinersTrainMergeAndFinish) {
  NodeSwarm swarm(node_spec(3, 2, 24));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  expect_finished(swarm);
  for (size_t number = 0; number < 6; ++number) {
    const StatusOr<std::string> why = swarm.miner_result(number);
    ASSERT_TRUE(why.ok()) << why.status();
    EXPECT_EQ(*why, "the run is finished");
  }
  expect_identical_replicas(swarm, {0, 1, 2, 3, 4, 5});
  const OrchestratorState state = swarm.journal->state();
  for (const core::StageRecord& stage : state.stages) EXPECT_GE(stage.merges, 2u);
  for (const core::MinerRecord& miner : state.miners) EXPECT_GT(miner.counted, 10u);

  const std::vector<float> seen = losses(*swarm.journal, 2);
  ASSERT_GE(seen.size(), swarm.spec.total_microbatches());
  EXPECT_NEAR(seen.front(), 0.5, 0.1);  // the mean of |uniform(-1, 1)|
  EXPECT_LT(seen.back(), 0.7f * seen.front());

  ASSERT_EQ(swarm.checkpoints.all().size(), 1u);
  const ports::Checkpoint checkpoint = swarm.checkpoints.all().front();
  EXPECT_EQ(checkpoint.done, swarm.spec.total_microbatches());
  EXPECT_EQ(checkpoint.miners.size(), 6u);
  for (StageIndex s = 0; s < 3; ++s) {
    EXPECT_EQ(checkpoint.stages[s].weights.size(), core::stage_value_count(swarm.spec, s));
    EXPECT_EQ(checkpoint.stages[s].weights, checkpoint.stages[s].base);
    EXPECT_EQ(*node::name_stage_state(checkpoint.stages[s].base, checkpoint.stages[s].momentum),
              state.stages[s].state);
  }
}

TEST(Swarm, MomentsThatAreMergedAreTheSameAtEveryReplica) {
  core::RunSpec spec = node_spec(2, 3, 24);
  spec.merge.optimizer_moments = core::MergeMoments::kAverage;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  expect_finished(swarm);
  expect_identical_replicas(swarm, {0, 1, 2, 3, 4, 5});
  // Taken after the last merge: nobody has trained since.
  const ports::Checkpoint checkpoint = swarm.checkpoints.all().at(0);
  ASSERT_EQ(checkpoint.miners.size(), 6u);
  std::map<StageIndex, const core::LocalState*> first;
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    const core::LocalState& expected = *first.emplace(miner.stage, &miner.state).first->second;
    EXPECT_EQ(node::bytes_of(miner.state.first_moment), node::bytes_of(expected.first_moment));
    EXPECT_EQ(node::bytes_of(miner.state.second_moment), node::bytes_of(expected.second_moment));
    EXPECT_THAT(miner.state.second_moment, testing::Contains(testing::Gt(0.0f)));
  }
}

TEST(Swarm, ALoneMinerOfALoneStageTrainsToo) {
  NodeSwarm swarm(node_spec(1, 1, 20));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  expect_finished(swarm);
  expect_identical_replicas(swarm, {0});
}

TEST(Swarm, WithoutMergesTheCheckpointHasAReplicasWeights) {
  core::RunSpec spec = node_spec(2, 1, 10);
  spec.merge.enabled = false;
  spec.training.synchronous = true;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  expect_finished(swarm);
  const ports::Checkpoint checkpoint = swarm.checkpoints.all().at(0);
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    EXPECT_EQ(miner.local_steps, 10u);
    EXPECT_EQ(checkpoint.stages[miner.stage].weights, miner.state.masters);
    EXPECT_NE(checkpoint.stages[miner.stage].weights, checkpoint.stages[miner.stage].base);
  }
}

TEST(Swarm, ALateJoinerGetsTheStateAndTakesPartInAMerge) {
  NodeSwarm swarm(node_spec(2, 2, 500));  // time enough for it on any machine
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(
      swarm.journal->wait([](const OrchestratorState& state) { return at_epoch(state, 1); }));
  const size_t late = swarm.start_miner(1);
  const NodeId node = swarm.node(late);
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) {
    const auto known = state.by_node.find(node);
    if (known == state.by_node.end()) return false;
    const auto& past = state.stages[1].past;
    return std::any_of(past.begin(), past.end(), [&](const core::PastMerge& merge) {
      return std::count(merge.participants.begin(), merge.participants.end(), known->second) > 0;
    });
  }));
  expect_finished(swarm);
  for (size_t number = 0; number < 5; ++number) EXPECT_TRUE(swarm.miner_result(number).ok());
  expect_identical_replicas(swarm, {0, 1, 2, 3, 4});
}

TEST(Swarm, StopsWithACheckpointAndGoesOnFromIt) {
  core::RunSpec spec = node_spec(2, 2, 60);
  spec.checkpoint.every_microbatches = 70;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait(
      [](const OrchestratorState& state) { return !state.last_checkpoint.empty(); }));
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done >= 90; }));
  swarm.request_stop();
  const StatusOr<std::string> why = swarm.orchestrator_result();
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_EQ(*why, "the run is stopped");
  for (size_t number = 0; number < 4; ++number)
    EXPECT_EQ(*swarm.miner_result(number), "the run is stopped");
  const ports::Checkpoint checkpoint = swarm.checkpoints.all().back();
  EXPECT_GE(checkpoint.done, 90u);
  EXPECT_LT(checkpoint.done, spec.total_microbatches());
  EXPECT_EQ(checkpoint.miners.size(), 4u);
  EXPECT_EQ(checkpoint.next_microbatch, checkpoint.done + checkpoint.open.size());
  const Epoch epoch = checkpoint.stages[0].epoch;
  EXPECT_GE(epoch, 1u);

  // Another orchestrator, with an empty journal; the miners' keys are the same.
  swarm.crash_orchestrator();
  swarm.journal = std::make_unique<MemoryJournal>();
  const Status opened = swarm.open_orchestrator(checkpoint);
  ASSERT_TRUE(opened.ok()) << opened;
  EXPECT_EQ(swarm.journal->state().done, checkpoint.done);
  EXPECT_EQ(swarm.journal->state().run_id, checkpoint.run_id);
  for (size_t number = 0; number < 4; ++number) swarm.restart_miner(number);
  ASSERT_TRUE(swarm.journal->wait(
      [](const OrchestratorState& state) { return state.phase == RunPhase::kRunning; }));
  expect_finished(swarm);
  EXPECT_GT(swarm.journal->state().stages[0].epoch, epoch);
  for (size_t number = 0; number < 4; ++number) EXPECT_TRUE(swarm.miner_result(number).ok());
  expect_identical_replicas(swarm, {0, 1, 2, 3});
  // Everyone went on with moments of its own: the steps before the checkpoint are in them.
  const ports::Checkpoint last = swarm.checkpoints.all().back();
  ASSERT_EQ(last.miners.size(), 4u);
  for (const ports::CheckpointMiner& miner : last.miners) {
    const auto before =
        std::find_if(checkpoint.miners.begin(), checkpoint.miners.end(),
                     [&](const ports::CheckpointMiner& m) { return m.node == miner.node; });
    ASSERT_NE(before, checkpoint.miners.end());
    EXPECT_GT(miner.state.optimizer_steps, before->state.optimizer_steps);
    EXPECT_GT(miner.schedule_step, before->schedule_step);
    EXPECT_EQ(miner.stage, before->stage);
  }
}

TEST(Swarm, PauseAndViews) {
  NodeSwarm swarm(node_spec(2, 1, 60));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done >= 10; }));
  const StatusOr<std::string> refused = swarm.command(KeyPair::generate(), "pause");
  EXPECT_TRUE(absl::IsPermissionDenied(refused.status()));
  EXPECT_THAT(message_of(refused.status()), HasSubstr("add it to 'admins'"));
  ASSERT_TRUE(swarm.command(swarm.admin, "pause").ok());
  ASSERT_TRUE(swarm.journal->wait(
      [](const OrchestratorState& state) { return state.phase == RunPhase::kPaused; }));
  const std::string status = swarm.query("status");
  EXPECT_THAT(status, HasSubstr("\"phase\":\"paused\""));
  EXPECT_THAT(status, HasSubstr("\"microbatches_total\":120"));
  EXPECT_THAT(status, HasSubstr("\"miners_live\":2"));
  EXPECT_THAT(swarm.query("miners"), HasSubstr("\"state\":\"ready\""));
  EXPECT_EQ(swarm.query("weather"), "unknown topic 'weather'; known: status, miners, merges");
  EXPECT_TRUE(absl::IsInvalidArgument(swarm.command(swarm.admin, "dance").status()));
  ASSERT_TRUE(swarm.command(swarm.admin, "checkpoint").ok());
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) {
    return state.phase == RunPhase::kPaused && !state.last_checkpoint.empty();
  }));
  ASSERT_TRUE(swarm.command(swarm.admin, "resume").ok());
  expect_finished(swarm);
}

}  // namespace
}  // namespace tessera::test
