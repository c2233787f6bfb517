// Audits of real nodes, with all their threads: honest miners pass, one whose loss or weights are not what it says is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adversaries/cheating_engine.h"
#include "support/node_swarm.h"
#include "support/process_validator.h"
#include "tessera/node/validator_node.h"
#include "tessera/sim/simulated_engine.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;
using testing::AnyOf;
using testing::HasSubstr;

core::RunSpec audited_spec(uint64_t steps) {
  core::RunSpec spec = node_spec(2, 1, steps);
  spec.audit.enabled = true;
  spec.audit.share = 1;
  spec.audit.segment_steps = 2;
  return spec;
}

class RunningValidator {
 public:
  explicit RunningValidator(NodeSwarm& swarm, const KeyPair& key)
      : link_(swarm.orchestrator(), key.id()), tokens_(swarm.spec.model.vocab) {
    node::ValidatorOptions options;
    options.incarnation = random_u64();
    options.auditor.device = "none";
    options.auditor.make_engine = [](const core::RunSpec& run, StageIndex stage, const core::BoxShape&) -> StatusOr<std::unique_ptr<ports::StageEngine>> {
      return std::make_unique<sim::SimulatedEngine>(run, stage);
    };
    node_ = std::make_unique<node::ValidatorNode>(std::move(options), node::ValidatorLinks{&link_, &swarm.blobs, &tokens_});
    thread_ = std::jthread([this] { result_ = node_->run(stop_); });
  }
  ~RunningValidator() { result(); }
  StatusOr<std::string> result() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return *result_;
  }

 private:
  ProcessValidatorLink link_;
  CountingTokens tokens_;
  std::unique_ptr<node::ValidatorNode> node_;
  std::atomic<bool> stop_{false};
  std::optional<StatusOr<std::string>> result_;
  std::jthread thread_;
};

std::vector<core::Verdict> verdicts(const NodeSwarm& swarm) {
  std::vector<core::Verdict> found;
  for (const core::Event& event : swarm.journal->events()) {
    if (const auto* recorded = std::get_if<core::VerdictRecorded>(&event)) found.push_back(recorded->verdict);
  }
  return found;
}

TEST(Audits, HonestMinersPass) {
  NodeSwarm swarm(audited_spec(1000));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  RunningValidator validator(swarm, swarm.validator);
  EXPECT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.audits.passed >= 8; }));
  EXPECT_TRUE(validator.result().ok());
  const OrchestratorState state = swarm.journal->state();
  EXPECT_EQ(state.audits.failed, 0u);
  for (const core::Verdict& verdict : verdicts(swarm)) EXPECT_TRUE(verdict.passed) << verdict.reason;
}

// The moments of every upload are judged with it, and a segment begins with those that the merge gave.
TEST(Audits, HonestMinersPassWithMergedMoments) {
  core::RunSpec spec = node_spec(1, 2, 1000);
  spec.audit = audited_spec(1000).audit;
  spec.audit.upload_share = 1;
  spec.merge.optimizer_moments = core::MergeMoments::kAverage;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  RunningValidator validator(swarm, swarm.validator);
  const auto judged_uploads = [&] {
    size_t judged = 0;
    for (const core::Verdict& verdict : verdicts(swarm)) {
      const auto evidence = swarm.blobs.get({verdict.evidence});
      if (evidence.ok()) judged += nlohmann::json::parse(evidence->at(0))["notes"].value("upload", "") == "judged";
    }
    return judged;
  };
  for (uint64_t passed = 0; judged_uploads() < 2; passed = swarm.journal->state().audits.passed) {
    ASSERT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) { return state.audits.passed > passed; }));
  }
  EXPECT_TRUE(validator.result().ok());
  EXPECT_EQ(swarm.journal->state().audits.failed, 0u);
  for (const core::Verdict& verdict : verdicts(swarm)) EXPECT_TRUE(verdict.passed || !core::voids_epoch(verdict)) << verdict.reason;
}

uint64_t repaired_in_evidence(NodeSwarm& swarm) {
  uint64_t repaired = 0;
  for (const core::Verdict& verdict : verdicts(swarm)) {
    const auto evidence = swarm.blobs.get({verdict.evidence});
    if (evidence.ok()) repaired += nlohmann::json::parse(evidence->at(0))["repaired_microbatches"].get<uint64_t>();
  }
  return repaired;
}

// What others began or ended for it is judged too: each of them only by what itself got and made of it.
TEST(Audits, HonestMinersPassWithRepairedWork) {
  core::RunSpec spec = node_spec(3, 2, 1000);
  spec.audit = audited_spec(1000).audit;
  spec.timeouts.peer_ms = 50;
  spec.timeouts.lease_ms = 1500;
  NodeSwarm swarm(spec);
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  RunningValidator validator(swarm, swarm.validator);
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.done >= 20; }));
  swarm.network.cut(swarm.address(2), true);
  const uint64_t done = swarm.journal->state().done;
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) { return state.done >= done + 60; }));
  swarm.network.cut(swarm.address(2), false);
  for (uint64_t passed = 0; repaired_in_evidence(swarm) == 0; passed = swarm.journal->state().audits.passed) {
    ASSERT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) { return state.audits.passed > passed; }));
  }
  EXPECT_TRUE(validator.result().ok());
  for (const core::Verdict& verdict : verdicts(swarm)) {
    EXPECT_TRUE(verdict.passed || !core::voids_epoch(verdict)) << verdict.reason;
  }
}

void expect_named(Cheat cheat, StageIndex stage, const testing::Matcher<std::string>& finding) {
  NodeSwarm swarm(audited_spec(200));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  for (StageIndex s = 0; s < 2; ++s) {
    swarm.wrap_engine = {};
    if (s == stage) {
      swarm.wrap_engine = [cheat](std::unique_ptr<ports::StageEngine> engine, const core::RunSpec& run) {
        return cheating(std::move(engine), run, {.cheat = cheat});
      };
    }
    swarm.start_miner(s);
  }
  RunningValidator validator(swarm, swarm.validator);
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return state.audits.failed > 0; }));
  const OrchestratorState state = swarm.journal->state();
  const MinerIndex cheater = state.by_node.at(swarm.node(stage));
  for (const core::Verdict& verdict : verdicts(swarm)) {
    if (verdict.passed || !core::voids_epoch(verdict)) continue;
    EXPECT_EQ(verdict.miner, cheater) << verdict.reason;
    EXPECT_THAT(verdict.reason, finding);
    EXPECT_FALSE(verdict.evidence.is_zero());
  }
}

TEST(Audits, AWrongLossIsNamed) { expect_named(Cheat::kWrongLoss, 1, HasSubstr("loss")); }
// By the segment's end, or by what was uploaded of them, whichever comes first.
TEST(Audits, FrozenWeightsAreNamed) {
  expect_named(Cheat::kFrozenWeights, 0, AnyOf(HasSubstr("weights"), HasSubstr("the upload's delta")));
}

TEST(Audits, AStrangerIsNoValidator) {
  NodeSwarm swarm(audited_spec(200));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  const KeyPair stranger = KeyPair::from_seed(std::string(32, 's'));
  ProcessValidatorLink link(swarm.orchestrator(), stranger.id());
  const auto answer = link.report({});
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(message_of(answer.status()), HasSubstr(stranger.id().hex()));
}

TEST(Audits, AnotherValidatorTakesOverFromADeadOne) {
  NodeSwarm swarm(audited_spec(200));
  ASSERT_TRUE(swarm.open_orchestrator().ok());
  swarm.start_all();
  // One that takes an audit and is never heard of again.
  ProcessValidatorLink silent(swarm.orchestrator(), swarm.validator.id());
  core::ValidatorReport report;
  report.incarnation = 1;
  std::optional<core::AuditTask> task;
  ASSERT_TRUE(swarm.journal->wait([](const OrchestratorState& state) { return !state.audits.open.empty(); }));
  task = silent.report(report)->task;
  ASSERT_TRUE(task);
  ASSERT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) {
    const auto open = state.audits.open.find(task->audit);
    return open != state.audits.open.end() && !open->second.validator;
  }));
  RunningValidator alive(swarm, swarm.validator);
  EXPECT_TRUE(swarm.journal->wait([&](const OrchestratorState& state) { return state.audits.open.count(task->audit) == 0; }));
  EXPECT_GE(swarm.journal->state().audits.passed, 1u);
}

}  // namespace
}  // namespace tessera::test
