// Snapshots of the state in the journal: written in parts, read back, and passed over when they are of no use.
#include "tessera/node/journal_snapshots.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "support/memory_ports.h"
#include "support/small_run.h"
#include "tessera/core/invariants.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

class JournalSnapshotsTest : public testing::Test {
 protected:
  void SetUp() override {
    core::RunCreated created;
    created.run_id = "0123456789abcdef";
    const core::RunSpec spec = small_spec(2, 1);
    created.run_spec = encode(spec);
    created.data_plan = encode(small_data());
    for (StageIndex s = 0; s < 2; ++s) created.stage_values.push_back(core::stage_value_count(spec, s));
    step(created);
  }
  void step(const core::Event& event) {
    core_.step(++now_, event);
    batch_.push_back({0, now_, core::event_name(event), core::event_body(event), "{}"});
    commit();
  }
  void commit() {
    snapshots_.add_part(now_, &batch_);
    ASSERT_TRUE(journal_.append(&batch_).ok());
    batch_.clear();
    snapshots_.take_if_due(core_);
  }
  void join(int miners) {
    for (int i = 0; i < miners; ++i) {
      core::Registration registration;
      registration.node = node_of(++joined_);
      registration.incarnation = 1;
      registration.address = std::string(200, 'a') + ":1";
      step(core::MinerRegistered{registration});
    }
  }
  // What a restart would have; `after` is where its replay began.
  core::OrchestratorState restarted(uint64_t* after) {
    core::Orchestrator core;
    node::JournalSnapshots snapshots(journal_, 0);
    const StatusOr<uint64_t> restored = snapshots.restore(&core);
    EXPECT_TRUE(restored.ok());
    *after = *restored;
    EXPECT_TRUE(journal_
                    .replay(*after,
                            [&](const ports::JournalRecord& record) {
                              if (record.kind != ports::kSnapshotKind) {
                                core.step(record.unix_ms, *core::decode_event(record.kind, record.body));
                              }
                              return ok_status();
                            })
                    .ok());
    return core.state();
  }
  uint64_t newest_part() {
    return (*journal_.newest(ports::kSnapshotKind, journal_.last_sequence()))->sequence;
  }

  MemoryJournal journal_;
  core::Orchestrator core_;
  node::JournalSnapshots snapshots_{journal_, 1000};
  std::vector<ports::JournalRecord> batch_;
  TimeMs now_ = 1000;
  uint64_t joined_ = 0;
};

TEST_F(JournalSnapshotsTest, WithoutOneTheReplayBeginsAtTheBeginning) {
  join(10);
  uint64_t after = 1;
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_EQ(after, 0u);
}

TEST_F(JournalSnapshotsTest, ASnapshotOfManyPartsAndTheTailAreTheState) {
  join(1500);
  uint64_t after = 0;
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_EQ(after, 1000u);
  EXPECT_GT(newest_part(), 1002u);  // more than one
}

TEST_F(JournalSnapshotsTest, OneThatACrashCutOffIsPassedOver) {
  while (journal_.last_sequence() < 2000) join(1);  // the second one is taken, and no part of it is written
  uint64_t after = 0;
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_EQ(after, 1000u);
  join(1);
  ASSERT_GT(newest_part(), 2000u);  // the first of its parts is
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_EQ(after, 1000u);
  join(30);
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_GE(after, 2000u);
}

TEST_F(JournalSnapshotsTest, ADamagedOneIsPassedOver) {
  join(1500);
  journal_.damage(newest_part());
  uint64_t after = 1;
  EXPECT_EQ(core::dump(restarted(&after)), core::dump(core_.state()));
  EXPECT_EQ(after, 0u);
}

TEST_F(JournalSnapshotsTest, OneOfAnotherVersionIsNotLoaded) {
  join(3);
  std::string bytes = core_.snapshot();
  core::Orchestrator other;
  EXPECT_TRUE(other.load(bytes));
  bytes[0] = static_cast<char>(bytes[0] + 1);  // the shape of its state
  EXPECT_FALSE(other.load(bytes));
  EXPECT_FALSE(other.load(core_.snapshot().substr(0, 500)));
  EXPECT_FALSE(other.load(""));
  EXPECT_EQ(core::dump(other.state()), core::dump(core_.state()));
}

}  // namespace
}  // namespace tessera::test
