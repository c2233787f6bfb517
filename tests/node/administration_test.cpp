// Orders to a running swarm of real nodes: other stages, assignments, drains, settings, a run that is created late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

core::RunSpec long_spec(uint32_t stages, uint32_t miners_per_stage) {
  core::RunSpec spec = node_spec(stages, miners_per_stage, 4000);
  spec.timeouts.miner_lost_ms = 2000;
  return spec;
}

// Base and momentum of every tensor of the whole model, from the stages' states in the blob store.
std::map<std::string, std::vector<float>> tensors(NodeSwarm& swarm, const core::RunSpec& spec,
                                                  const std::vector<Digest>& states) {
  std::map<std::string, std::vector<float>> all;
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    const uint64_t values = core::stage_value_count(spec, s);
    const auto bytes = node::get_object(swarm.blobs, states[s], 2 * values * sizeof(float));
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    if (!bytes.ok()) return all;
    const std::vector<float> state = node::values_of(*bytes);
    for (const core::TensorLayout& tensor : core::stage_layout(spec, s)) {
      for (const uint64_t half : {0, 1}) {
        const auto first = state.begin() + static_cast<std::ptrdiff_t>(half * values + tensor.offset);
        all[tensor.name + (half == 0 ? "" : " momentum")] =
            std::vector<float>(first, first + static_cast<std::ptrdiff_t>(tensor.count));
      }
    }
  }
  return all;
}

TEST(Administration, TheStagesOfARunningRunAreCutAnewAndTheModelStaysTheSame) {
  core::RunSpec spec = long_spec(2, 2);
  spec.model.layers = 6;
  spec.pipeline.stage_layers = {3, 3};
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) {
    return state.stages.size() == 2 && state.stages[0].merges > 0 && state.stages[1].merges > 0;
  }));
  EXPECT_THAT(message_of(swarm.command(swarm.admin, "stages", R"({"layers":"0-1,3-5"})").status()), HasSubstr("tile"));
  const auto answer = swarm.command(swarm.admin, "stages", R"({"layers":"0-1,2-5"})");
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.spec.pipeline.stage_layers[0] == 2; }));
  // The old states are those that were current when the new ones were ordered.
  core::Orchestrator replay;
  std::vector<Digest> old_states, new_states;
  for (const core::Event& event : swarm.journal->events()) {
    if (const auto* changed = std::get_if<core::StagesChanged>(&event)) {
      ASSERT_TRUE(changed->ok) << changed->why;
      for (const core::StageRecord& stage : replay.state().stages) old_states.push_back(stage.state);
      new_states = changed->states;
      break;
    }
    replay.step(0, event);
  }
  core::RunSpec after = spec;
  after.pipeline.stage_layers = {2, 4};
  const auto before = tensors(swarm, spec, old_states);
  ASSERT_GT(before.size(), 100u);
  EXPECT_EQ(tensors(swarm, after, new_states), before);
  // Everyone joins again by itself, in the same process, and training and merging go on.
  const uint64_t done = swarm.journal->state().done;
  ASSERT_TRUE(swarm.journal->wait([done](const OrchestratorState& state) {
    return state.done > done + 40 && state.stages[0].merges > 1 && state.stages[1].merges > 1 &&
           std::all_of(state.miners.begin(), state.miners.end(), [](const auto& m) { return m.live && m.ready; });
  }));
  EXPECT_EQ(swarm.journal->state().double_counted, 0u);
  swarm.crash_orchestrator();
  ASSERT_TRUE(swarm.open_orchestrator().ok());  // with the YAML that the run was created with
  EXPECT_EQ(swarm.journal->state().spec.pipeline.stage_layers[0], 2u);
}

TEST(Administration, AnAssignedMinerRebuildsItsEngineAndGoesOnInTheSameProcess) {
  NodeSwarm swarm(long_spec(2, 1));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  const size_t third = swarm.start_miner(0);
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) {
    return state.miners.size() == 3 && state.done > 20 &&
           std::all_of(state.miners.begin(), state.miners.end(), [](const auto& m) { return m.ready; });
  }));
  const MinerIndex index = swarm.journal->state().by_node.at(swarm.node(third));
  const std::string order = R"({"stage":1,"miner":")" + std::to_string(index) + R"("})";
  ASSERT_TRUE(swarm.command(swarm.admin, "assign", order).ok());
  ASSERT_TRUE(swarm.journal->wait([index](const OrchestratorState& state) {
    return state.miners[index].stage == 1 && state.miners[index].ready && state.miners[index].counted > 0;
  }));
  const uint64_t counted = swarm.journal->state().miners[index].counted;
  ASSERT_TRUE(swarm.journal->wait([=](const OrchestratorState& state) { return state.miners[index].counted > counted + 5; }));
  EXPECT_TRUE(swarm.journal->state().miners[index].pinned);
  EXPECT_THAT(swarm.query("miners"), HasSubstr("\"pinned\":true"));
}

TEST(Administration, ADrainedMinerEndsAndNothingIsLost) {
  NodeSwarm swarm(long_spec(2, 2));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done > 20; }));
  const MinerIndex index = swarm.journal->state().by_node.at(swarm.node(3));
  ASSERT_TRUE(swarm.command(swarm.admin, "drain", R"({"miner":")" + std::to_string(index) + R"("})").ok());
  const StatusOr<std::string> result = swarm.miner_result(3);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(swarm.journal->state().miners[index].live);
  const uint64_t done = swarm.journal->state().done;
  EXPECT_TRUE(swarm.journal->wait([done](const OrchestratorState& state) { return state.done > done + 20; }));
}

TEST(Administration, ASettingReachesTheMinersOfARunningRun) {
  core::RunSpec spec = long_spec(2, 1);
  spec.training.decay = core::LrDecay::kConstant;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done > 10; }));
  EXPECT_THAT(message_of(swarm.command(swarm.admin, "config", R"({"key":"model.width","value":"9"})").status()),
              HasSubstr("can't change in a running run"));
  const auto changed = swarm.command(swarm.admin, "config", R"({"key":"merge.outer_learning_rate","value":"0.5"})");
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_THAT(*changed, HasSubstr("\"changed\":true"));
  const auto again = swarm.command(swarm.admin, "config", R"({"key":"merge.outer_learning_rate","value":"0.5"})");
  EXPECT_THAT(*again, HasSubstr("\"changed\":false"));
  const uint64_t merges = swarm.journal->state().stages[0].merges;
  ASSERT_TRUE(swarm.journal->wait([=](const OrchestratorState& state) { return state.stages[0].merges > merges + 1; }));
  EXPECT_EQ(swarm.journal->state().stages[0].replica_mismatches, 0u);
  for (const char* bad : {"", "[]", R"({"key":1})", R"({"key":"training.learning_rate"})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(swarm.command(swarm.admin, "config", bad).status())) << bad;
  }
}

TEST(Administration, ARunIsCreatedOnceAndTheMinersThatWaitedForItJoin) {
  const core::RunSpec spec = long_spec(2, 1);
  NodeSwarm swarm(spec);
  const auto prepare = [&](const std::string& text) -> StatusOr<node::NewRun> {
    if (text == "broken") return invalid_argument("line 1: no");
    core::RunSpec made = spec;
    made.name = text;
    return node::NewRun{made, small_data()};
  };
  ASSERT_TRUE(swarm.open_orchestrator_without_run(prepare).ok());
  swarm.start_all();
  EXPECT_THAT(swarm.query("status"), HasSubstr("\"phase\":\"none\""));
  EXPECT_THAT(message_of(swarm.command(swarm.admin, "pause").status()), HasSubstr("no run yet"));
  EXPECT_THAT(message_of(swarm.command(swarm.admin, "create", "broken").status()), HasSubstr("line 1"));
  const auto created = swarm.command(swarm.admin, "create", "small");
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_THAT(*created, HasSubstr("\"changed\":true"));
  EXPECT_THAT(*swarm.command(swarm.admin, "create", "small"), HasSubstr("\"changed\":false"));
  EXPECT_TRUE(absl::IsAlreadyExists(swarm.command(swarm.admin, "create", "other").status()));
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done > 10; }));
  swarm.crash_orchestrator();
  ASSERT_TRUE(swarm.open_orchestrator_without_run(prepare).ok());  // it goes on with the run of its journal
  const uint64_t done = swarm.journal->state().done;
  EXPECT_TRUE(swarm.journal->wait([done](const OrchestratorState& state) { return state.done > done + 10; }));
}

}  // namespace
}  // namespace tessera::test
