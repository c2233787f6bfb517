#include "node/audit_worker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "support/memory_ports.h"
#include "tessera/core/payload_name.h"

namespace tessera::node {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kPatience(60000);

// Remembers what came in which call. Thread-safe.
class RecordedBlobs final : public ports::BlobLink {
 public:
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override {
    std::lock_guard lock(mutex_);
    auto names = store_.put(blobs);
    calls_.push_back(*names);
    return names;
  }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& names) override {
    std::lock_guard lock(mutex_);
    return store_.get(names);
  }
  std::vector<std::vector<Digest>> calls() const {
    std::lock_guard lock(mutex_);
    return calls_;
  }

 private:
  mutable std::mutex mutex_;
  test::MemoryBlobs store_;
  std::vector<std::vector<Digest>> calls_;
};

core::BoundaryPayload payload_of(uint32_t number, size_t bytes = 100) {
  core::BoundaryPayload payload;
  payload.bytes.assign(bytes, static_cast<uint8_t>(number));
  payload.bytes.front() = static_cast<uint8_t>(number >> 8);
  return payload;
}

core::miner_effect::StoreSegment segment_of(uint64_t number) {
  core::LocalState state;
  state.masters = state.first_moment = state.second_moment = {1, 2, 3};
  core::miner_effect::StoreSegment segment;
  segment.commit.number = number;
  segment.state = std::make_shared<const core::LocalState>(std::move(state));
  return segment;
}

class AuditWorkerTest : public ::testing::Test {
 protected:
  AuditWorker make(milliseconds linger) {
    return AuditWorker(blobs_, [this](core::MinerEvent event) { events_.push(std::move(event)); }, linger);
  }
  core::SegmentCommit commitment() {
    const auto event = events_.pop(kPatience);
    if (!event) return {};
    return std::get<core::miner_event::SegmentStored>(*event).commit;
  }

  RecordedBlobs blobs_;
  BoundedQueue<core::MinerEvent> events_{64};
};

// However long they may linger, a commitment takes along what came before it, in one call.
TEST_F(AuditWorkerTest, ACommitmentIsStoredAfterThePayloadsBeforeIt) {
  AuditWorker worker = make(std::chrono::hours(24));
  for (uint32_t i = 0; i < 20; ++i) worker.keep(payload_of(i));
  worker.store(segment_of(1));
  const core::SegmentCommit commit = commitment();
  EXPECT_EQ(commit.number, 1);
  EXPECT_FALSE(commit.state.is_zero());
  EXPECT_TRUE(commit.dropped.empty());
  const auto calls = blobs_.calls();
  ASSERT_GE(calls.size(), 2u);
  ASSERT_EQ(calls.front().size(), 20u);
  for (uint32_t i = 0; i < 20; ++i) EXPECT_EQ(calls.front()[i], core::name_of(payload_of(i)));
  EXPECT_EQ(calls.back(), std::vector<Digest>{commit.state});
  EXPECT_EQ(worker.stored(), 20u);
}

TEST_F(AuditWorkerTest, AFullBatchDoesNotLinger) {
  AuditWorker worker = make(std::chrono::hours(24));
  for (uint32_t i = 0; i < 128 + 3; ++i) worker.keep(payload_of(i));
  worker.store(segment_of(1));
  EXPECT_FALSE(commitment().state.is_zero());
  const auto calls = blobs_.calls();
  ASSERT_GE(calls.size(), 3u);
  EXPECT_EQ(calls[0].size(), 128u);
  EXPECT_EQ(calls[1].size(), 3u);
}

TEST_F(AuditWorkerTest, WithoutACommitmentAPayloadIsStoredWhenItHasLingered) {
  AuditWorker worker = make(milliseconds(1));
  worker.keep(payload_of(7));
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (worker.stored() == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(worker.stored(), 1u);
  EXPECT_TRUE(blobs_.get({core::name_of(payload_of(7))}).ok());
}

}  // namespace
}  // namespace tessera::node
