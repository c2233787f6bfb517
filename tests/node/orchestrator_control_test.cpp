// The orchestrator's control without its threads: what it believes only after a look, and what a miner's bad word costs.
#include <gmock/gmock.h>
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
    options.registrations_per_minute = 3;
    return options;
  }
  node::OrchestratorSurroundings surroundings() {
    return {.unix_ms = [this] { return now_; },
            .monotonic_ms = [this] { return now_; },
            .random_bytes = [](size_t size) { return std::string(size, 'r'); },
            .key = node_of(99),
            .sign = signature_of,
            .verify = [this](const NodeId&, std::string_view, const Signature&) { ++verified_; return true; },
            .start = [this](node::OrchestratorJob job) { started_.push_back(std::move(job)); return true; },
            .registered = [this](const NodeId&, const node::BlobShare& share) { share_ = share; },
            .blobs_asked = [this](const NodeId&, uint64_t bytes) { asked_ += bytes; },
            .forgotten = [this](const NodeId& node) { forgotten_.push_back(node); }};
  }
  core::SyncAnswer report(core::SyncRequest request) {
    request.incarnation = 5;
    core::SyncAnswer told;
    TESSERA_CHECK(control_.handle(node::SyncCall{{node_, session_, "here"}, std::move(request), [&](auto answer) { told = *answer; }}).ok());
    TESSERA_CHECK(control_.commit().ok());
    return told;
  }
  // A miner with this key registers from there.
  Status join(const NodeId& node, const std::string& address) {
    core::Registration registration;
    registration.node = node;
    registration.incarnation = 5;
    registration.address = "there:1";
    Status status;
    TESSERA_CHECK(control_.handle(node::RegisterCall{{node, "", address}, registration, [&](auto answer) {
      status = answer.status();
      if (answer.ok()) second_session_ = answer->session;
    }}).ok());
    TESSERA_CHECK(control_.commit().ok());
    return status;
  }
  static Signature signature_of(std::string_view bytes) {
    Signature signature{};
    const Digest digest = digest_of(bytes);
    std::copy(digest.bytes.begin(), digest.bytes.end(), signature.begin());
    return signature;
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
  uint64_t asked_ = 0;
  node::BlobShare share_;
  std::vector<NodeId> forgotten_;
  MemoryJournal journal_;
  MemoryBlobs blobs_;
  MemoryCheckpoints checkpoints_;
  std::deque<node::OrchestratorJob> started_;
  std::string session_;
  std::string second_session_;  // of whoever registered last
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

TEST_F(OrchestratorControlTest, OneLookAStageIsUnderWay) {
  ASSERT_TRUE(join(node_of(2), "elsewhere").ok());
  const std::vector<float> values(core::stage_value_count(spec_, 0), 1.0f);
  core::SyncRequest request;
  request.applied = core::MergeApplied{};
  request.applied->state = *node::name_stage_state(values, values);
  const auto second_reports = [&] {
    core::SyncRequest own = request;
    own.incarnation = 5;
    TESSERA_CHECK(control_.handle(node::SyncCall{{node_of(2), second_session_, "elsewhere"}, own, [](auto) {}}).ok());
    TESSERA_CHECK(control_.commit().ok());
  };
  report(request);
  second_reports();
  request.published_state = request.applied->state;
  report(request);
  second_reports();
  EXPECT_EQ(started_.size(), 1u);
  work_off();  // there is nothing
  second_reports();
  EXPECT_EQ(started_.size(), 1u);  // the other's word is not held back by that
}

TEST_F(OrchestratorControlTest, SignaturesOfCommitmentsThatNobodyAskedForAreNotChecked) {
  core::SyncRequest request;
  request.shards.resize(1000);
  report(request);
  EXPECT_EQ(verified_, 0u);
}

TEST_F(OrchestratorControlTest, LeasesAreSignedWhenTheyAreTold) {
  core::SyncRequest request;
  request.applied = core::MergeApplied{.epoch = 0, .state = digest_of("state")};
  report(request);
  request.lease_request = 1;
  request.leases_wanted = 1;
  const core::SyncAnswer answer = report(request);
  ASSERT_EQ(answer.leases.size(), 1u);
  EXPECT_EQ(answer.leases[0].signature, signature_of(answer.leases[0].signed_bytes(control_.run_id())));
  EXPECT_EQ(answer.leases[0].expires_unix_ms, now_ + answer.leases[0].lifetime_ms);
}

TEST_F(OrchestratorControlTest, AMinersKeyMayStoreWhatItIsAskedForOnce) {
  core::SyncRequest request;
  request.applied = core::MergeApplied{.epoch = 0, .state = digest_of("state")};
  report(request);
  ASSERT_TRUE(report(request).publish_state);
  const uint64_t state_bytes = 8 * core::stage_value_count(spec_, 0);
  EXPECT_GE(asked_, state_bytes);
  EXPECT_EQ(share_.base_bytes, options().blob_share_bytes);
  EXPECT_GT(share_.most_bytes, share_.base_bytes + state_bytes);
  const uint64_t once = asked_;
  report(request);
  EXPECT_EQ(asked_, once);
}

TEST_F(OrchestratorControlTest, NewKeysFromOneAddressArePutOff) {
  for (uint64_t number = 10; number < 14; ++number) {
    const Status status = join(node_of(number), "ipv4:10.0.0.1:" + std::to_string(4000 + number));
    EXPECT_EQ(status.ok(), number < 13) << status;
    if (number == 13) EXPECT_THAT(message_of(status), testing::HasSubstr("raise registrations_per_minute"));
  }
  EXPECT_TRUE(join(node_of(10), "ipv4:10.0.0.1:1").ok());  // it is known
  EXPECT_TRUE(join(node_of(20), "ipv4:10.0.0.2:1").ok());
  now_ += node::RegistrationLimit::kWindowMs;
  EXPECT_TRUE(join(node_of(13), "ipv4:10.0.0.1:2").ok());
}

TEST(RegistrationLimit, AnAddressIsAHostOrANetworkOfIpv6) {
  const auto network = [](const char* address) { return node::RegistrationLimit::network_of(address); };
  EXPECT_EQ(network("ipv4:10.0.0.1:4000"), network("ipv4:10.0.0.1:4001"));
  EXPECT_NE(network("ipv4:10.0.0.1:4000"), network("ipv4:10.0.0.2:4000"));
  EXPECT_EQ(network("ipv6:[2001:db8:1:2::1]:80"), network("ipv6:%5B2001:db8:1:2:ffff::9%5D:81"));
  EXPECT_NE(network("ipv6:[2001:db8:1:2::1]:80"), network("ipv6:[2001:db8:1:3::1]:80"));
  EXPECT_NE(network("ipv6:[::ffff:10.0.0.1]:80"), network("ipv6:[::ffff:10.0.0.2]:80"));
  for (const char* odd : {"", "ipv6:", "ipv6:[", "ipv6:[nonsense]:1", "unix:", "here"}) network(odd);
}

TEST(RegistrationLimit, AddressesAreBounded) {
  node::RegistrationLimit limit(1);
  for (size_t i = 0; i < node::RegistrationLimit::kMaxAddresses; ++i) ASSERT_TRUE(limit.admits(std::to_string(i) + ":1", 0));
  EXPECT_FALSE(limit.admits("another:1", 0));
  EXPECT_TRUE(limit.admits("another:1", node::RegistrationLimit::kWindowMs));
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
