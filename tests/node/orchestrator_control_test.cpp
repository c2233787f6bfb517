// The orchestrator's control without its threads: what it believes only after a look, and what a miner's bad word costs.
#include <gtest/gtest.h>

#include <deque>

#include "support/memory_ports.h"
#include "support/small_run.h"
#include "tessera/base/log.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"
#include "tessera/node/orchestrator_control.h"

namespace tessera::test {
namespace {

class OrchestratorControlTest : public testing::Test {
 protected:
  OrchestratorControlTest() {
    spdlog::set_level(spdlog::level::off);
    TESSERA_CHECK(control_.open(blobs_).ok());
    core::Registration registration;
    registration.node = node_;
    registration.incarnation = 5;
    registration.address = "here:1";
    TESSERA_CHECK(control_.handle(node::RegisterCall{{node_, "", "here"}, registration, [this](auto answer) {
      session_ = answer->session;
    }}).ok());
    TESSERA_CHECK(control_.commit().ok());
  }
  node::OrchestratorOptions options() {
    node::OrchestratorOptions options;
    options.spec = spec_;
    options.data = small_data();
    return options;
  }
  node::OrchestratorSurroundings surroundings() {
    return {.unix_ms = [this] { return now_; },
            .monotonic_ms = [this] { return now_; },
            .random_bytes = [](size_t size) { return std::string(size, 'r'); },
            .verify = [this](const NodeId&, std::string_view, const Signature&) { ++verified_; return true; },
            .start = [this](node::OrchestratorJob job) { started_.push_back(std::move(job)); return true; },
            .registered = [](const NodeId&) {}};
  }
  void report(core::SyncRequest request) {
    request.incarnation = 5;
    TESSERA_CHECK(control_.handle(node::SyncCall{{node_, session_, "here"}, std::move(request), [](auto) {}}).ok());
    TESSERA_CHECK(control_.commit().ok());
  }
  void work_off() {
    node::OrchestratorJobs jobs(blobs_, checkpoints_, nullptr, nullptr);
    while (!started_.empty()) {
      auto result = jobs.run(started_.front());
      started_.pop_front();
      if (!result) continue;
      TESSERA_CHECK(std::visit([this](auto& done) { return control_.handle(std::move(done)); }, *result).ok());
    }
    TESSERA_CHECK(control_.commit().ok());
  }

  const core::RunSpec spec_ = small_spec(1, 1);
  const NodeId node_ = node_of(1);
  TimeMs now_ = 1000;
  uint64_t verified_ = 0;
  MemoryJournal journal_;
  MemoryBlobs blobs_;
  MemoryCheckpoints checkpoints_;
  std::deque<node::OrchestratorJob> started_;
  std::string session_;
  node::OrchestratorControl control_{options(), journal_, surroundings()};
};

TEST_F(OrchestratorControlTest, AStateCountsAsPublishedWhenAllOfItCanBeRead) {
  const std::vector<float> values(core::stage_value_count(spec_, 0), 1.0f);
  core::SyncRequest request;
  request.applied = core::MergeApplied{};
  request.applied->state = *node::name_stage_state(values, values);
  report(request);
  ASSERT_TRUE(control_.state().miners[0].ready);
  request.published_state = request.applied->state;
  report(request);
  report(request);
  EXPECT_EQ(started_.size(), 1u);  // one look, however often it is said
  work_off();
  EXPECT_FALSE(control_.state().stages[0].state_published);

  ASSERT_TRUE(node::put_object(blobs_, node::encode_stage_state(values, values)).ok());
  report(request);
  EXPECT_TRUE(started_.empty());  // not so soon again
  now_ += 10000;
  report(request);
  work_off();
  EXPECT_TRUE(control_.state().stages[0].state_published);
}

TEST_F(OrchestratorControlTest, SignaturesOfCommitmentsThatNobodyAskedForAreNotChecked) {
  core::SyncRequest request;
  request.shards.resize(1000);
  report(request);
  EXPECT_EQ(verified_, 0u);
}

TEST_F(OrchestratorControlTest, ALossThatIsNoNumberDoesNotSpoilTheMean) {
  core::SyncRequest request;
  for (const float loss : {std::numeric_limits<float>::quiet_NaN(), 2.0f}) {
    core::Receipt& receipt = request.receipts.emplace_back();
    receipt.miner = 0;
    receipt.incarnation = 5;
    receipt.sequence = request.receipts.size();
    receipt.loss = loss;
  }
  report(request);
  std::string status;
  TESSERA_CHECK(control_.handle(node::QueryCall{"status", "", [&](auto answer) { status = *answer; }}).ok());
  TESSERA_CHECK(control_.commit().ok());
  EXPECT_NE(status.find("\"loss\":2,"), std::string::npos) << status;
}

// Whatever a miner commits as its state, the others' checkpoint is written.
TEST(Checkpoint, IsWrittenWithoutStatesThatCantBeRead) {
  MemoryBlobs blobs;
  MemoryCheckpoints checkpoints;
  node::CheckpointJob job;
  job.counters.spec = small_spec(1, 3);
  const uint64_t count = core::stage_value_count(job.counters.spec, 0);
  const std::vector<float> values(count, 1.0f);
  job.counters.stages.resize(1);
  job.stage_states = {*node::put_object(blobs, node::encode_stage_state(values, values))};
  const auto state_of = [&](uint64_t size) {
    const std::vector<float> some(size, 2.0f);
    return *node::put_object(blobs, node::encode_local_state({.masters = some, .first_moment = some, .second_moment = some}));
  };
  job.local_states = {digest_of("nothing"), state_of(count + 1), state_of(count)};
  for (uint64_t number : {1, 2, 3}) job.counters.miners.push_back({.node = node_of(number)});
  ASSERT_TRUE(node::write_checkpoint(blobs, checkpoints, job).ok());
  ASSERT_EQ(checkpoints.all().size(), 1u);
  ASSERT_EQ(checkpoints.all()[0].miners.size(), 1u);
  EXPECT_EQ(checkpoints.all()[0].miners[0].node, node_of(3));
  EXPECT_EQ(checkpoints.all()[0].miners[0].state.masters.size(), count);
}

}  // namespace
}  // namespace tessera::test
