// The orchestrator's shell: what it refuses, and what it does when its journal does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <set>

#include "support/node_swarm.h"
#include "tessera/base/log.h"

namespace tessera::test {
namespace {

using testing::HasSubstr;

class OrchestratorNodeTest : public testing::Test {
 protected:
  void SetUp() override {
    spdlog::set_level(spdlog::level::off);
    ASSERT_TRUE(open().ok());
    thread_ = std::jthread([this] { result_ = node_->run(stop_, abandon_); });
  }
  void TearDown() override {
    abandon_ = true;
    if (thread_.joinable()) thread_.join();
  }
  Status open() {
    node::OrchestratorOptions options;
    options.spec = spec_;
    options.data = small_data();
    TESSERA_ASSIGN_OR_RETURN(node_, node::OrchestratorNode::open(
                                        std::move(options), {&orchestrator_key_, &journal_, &blobs_, &checkpoints_, {}, accounts()}));
    return ok_status();
  }
  // Written on the control thread before the registration is answered.
  node::BlobAccounts accounts() {
    return {.open = [this](const NodeId& node, const node::BlobShare&) { may_store_.insert(node); }};
  }
  core::Registration registration() const {
    core::Registration registration;
    registration.node = key_.id();
    registration.incarnation = 5;
    registration.address = "here:1";
    registration.wanted_stage = 0;
    return registration;
  }
  StatusOr<core::RegisterAnswer> join(const NodeId& caller, core::Registration registration) {
    auto answer = std::make_shared<std::promise<StatusOr<core::RegisterAnswer>>>();
    node_->on_register(
        {caller, "", "here"}, std::move(registration),
        [answer](StatusOr<core::RegisterAnswer> a) { answer->set_value(std::move(a)); });
    return answer->get_future().get();
  }
  StatusOr<core::SyncAnswer> sync(const std::string& session, core::SyncRequest request) {
    auto answer = std::make_shared<std::promise<StatusOr<core::SyncAnswer>>>();
    node_->on_sync({key_.id(), session, "here"}, std::move(request),
                   [answer](StatusOr<core::SyncAnswer> a) { answer->set_value(std::move(a)); });
    return answer->get_future().get();
  }

  // Nobody is lost here, however slow the machine is.
  static core::RunSpec patient_spec() {
    core::RunSpec spec = small_spec(2, 1);
    spec.timeouts.miner_lost_ms = 60000;
    return spec;
  }

  core::RunSpec spec_ = patient_spec();
  const KeyPair orchestrator_key_ = KeyPair::from_seed(std::string(32, 'o'));
  std::set<NodeId> may_store_;
  const KeyPair key_ = KeyPair::from_seed(std::string(32, 'k'));
  MemoryJournal journal_;
  MemoryBlobs blobs_;
  MemoryCheckpoints checkpoints_;
  std::unique_ptr<node::OrchestratorNode> node_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> abandon_{false};
  std::optional<StatusOr<std::string>> result_;
  std::jthread thread_;
};

TEST_F(OrchestratorNodeTest, ARegistrationGetsASessionAndTheRunsDescription) {
  const StatusOr<core::RegisterAnswer> answer = join(key_.id(), registration());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->miner, 0u);
  EXPECT_EQ(answer->session.size(), 16u);
  EXPECT_EQ(answer->run_id, node_->run_id());
  EXPECT_EQ(answer->run_spec, encode(spec_));
  EXPECT_EQ(may_store_, (std::set<NodeId>{key_.id()}));
  EXPECT_TRUE(absl::IsInvalidArgument(join(node_of(9), registration()).status()));
  core::Registration bad = registration();
  bad.address = "nowhere";
  EXPECT_EQ(join(key_.id(), bad)->refusal, core::RegisterRefusal::kBadAddress);
}

TEST_F(OrchestratorNodeTest, OnlyTheSessionOfTheNewestRegistrationMayReport) {
  core::SyncRequest request;
  request.incarnation = 5;
  EXPECT_FALSE(sync("", request)->known);
  const std::string first = join(key_.id(), registration())->session;
  EXPECT_TRUE(sync(first, request)->known);
  const std::string second = join(key_.id(), registration())->session;
  EXPECT_FALSE(sync(first, request)->known);
  EXPECT_TRUE(sync(second, request)->known);
  request.incarnation = 6;
  EXPECT_FALSE(sync(second, request)->known);
}

// One process with a key takes another's place at once; two that share it can't keep doing so.
TEST_F(OrchestratorNodeTest, ProcessesThatShareAKeyTakeTurnsSlowly) {
  ASSERT_TRUE(join(key_.id(), registration()).ok());
  core::Registration restarted = registration();
  restarted.incarnation = 6;
  EXPECT_TRUE(join(key_.id(), restarted).ok());
  const Status refused = join(key_.id(), registration()).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(message_of(refused), HasSubstr("share a key file"));
  EXPECT_TRUE(join(key_.id(), restarted).ok());  // its own process may always come back
}

TEST_F(OrchestratorNodeTest, AStageOfMoreBlocksThanAnObjectHoldsIsRefused) {
  TearDown();
  spec_.model.width = 4096;
  spec_.model.ffn_width = 65536;
  spec_.merge.block_values = 256;
  const Status refused = open();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(message_of(refused), HasSubstr("merge.block_values must be at least"));
}

TEST_F(OrchestratorNodeTest, AMergeOfMomentsHasThreeTimesTheBlocks) {
  TearDown();
  spec_.model.width = 256;
  spec_.model.ffn_width = 4096;
  spec_.merge.block_values = 256;
  spec_.merge.optimizer_moments = core::MergeMoments::kAverage;
  const Status refused = open();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(message_of(refused), HasSubstr("merge.block_values must be at least"));
  spec_.merge.optimizer_moments = core::MergeMoments::kLocal;
  EXPECT_THAT(message_of(open()), HasSubstr("a run with other settings"));  // of which the journal is: the blocks are few enough
}

TEST_F(OrchestratorNodeTest, AReceiptThatIsNotSignedAboutItselfByItsSenderIsLeftOutAndStopsNothing) {
  const core::RegisterAnswer joined = *join(key_.id(), registration());
  core::Receipt good;
  good.incarnation = 5;
  good.miner = 0;
  good.stage = 0;
  core::SyncRequest request;
  request.incarnation = 5;
  const auto add = [&](core::Receipt receipt, const std::function<void(core::Receipt*)>& before,
                       const std::function<void(core::Receipt*)>& after = {}) {
    receipt.sequence = request.receipts.size() + 1;
    if (before) before(&receipt);
    receipt.signature = key_.sign(receipt.signed_bytes(joined.run_id));
    if (after) after(&receipt);
    request.receipts.push_back(receipt);
  };
  add(good, {});
  add(good, {}, [](core::Receipt* r) { r->signature = {}; });
  add(good, {}, [](core::Receipt* r) { r->loss = 1; });
  add(good, [](core::Receipt* r) { r->miner = 1; });
  add(good, [](core::Receipt* r) { r->stage = 1; });
  add(good, [](core::Receipt* r) { r->incarnation = 4; });
  add(good, {}, [&](core::Receipt* r) { r->signature = key_.sign(r->signed_bytes("another run's id")); });
  add(good, {});
  const auto answer = sync(joined.session, request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->receipts_acknowledged, 8u);
  const core::MinerRecord miner = journal_.state().miners[0];
  EXPECT_EQ(miner.receipts_through, 8u);
  EXPECT_EQ(miner.receipts_rejected, 6u);
  for (const core::Event& event : journal_.events()) {
    const auto* arrived = std::get_if<core::ReceiptsArrived>(&event);
    if (arrived == nullptr) continue;
    ASSERT_EQ(arrived->receipts.size(), 2u);
    EXPECT_EQ(arrived->receipts[1].sequence, 8u);
    EXPECT_EQ(arrived->rejected, (std::vector<uint64_t>{2, 3, 4, 5, 6, 7}));
  }
}

TEST_F(OrchestratorNodeTest, NothingIsAcknowledgedThatTheJournalDoesNotHave) {
  journal_.fail();
  std::atomic<bool> answered{false};
  node_->on_register({key_.id(), "", "here"}, registration(),
                     [&](StatusOr<core::RegisterAnswer> answer) {
                       if (answer.ok()) answered = true;
                     });
  thread_.join();
  EXPECT_TRUE(absl::IsDataLoss(result_->status()));
  EXPECT_THAT(message_of(result_->status()), HasSubstr("journal: disk full"));
  EXPECT_FALSE(answered);
}

TEST_F(OrchestratorNodeTest, CallsAfterTheEndAreToldSo) {
  abandon_ = true;
  thread_.join();
  EXPECT_TRUE(result_->ok());
  EXPECT_TRUE(absl::IsResourceExhausted(join(key_.id(), registration()).status()));
}

TEST_F(OrchestratorNodeTest, AJournalOfOtherSettingsOrAnotherVersionIsNotOpened) {
  TearDown();
  spec_.training.steps++;
  const Status other = open();
  EXPECT_TRUE(absl::IsFailedPrecondition(other));
  EXPECT_THAT(message_of(other), HasSubstr("(section training)"));
  spec_.training.steps--;
  EXPECT_TRUE(open().ok());
  journal_.write_garbage();
  const Status refused = open();
  EXPECT_TRUE(absl::IsDataLoss(refused));
  EXPECT_EQ(message_of(refused),
            "journal entry 2 ('of the future') can't be read by this version; use the version that "
            "wrote it");
}

}  // namespace
}  // namespace tessera::test
