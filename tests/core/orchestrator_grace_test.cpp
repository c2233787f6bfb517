// Uploads that come late: within the grace they count, after it nothing is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

using core::MergePhase;

// Four miners; two uploads are the quorum, and the others have 100 ms from then on.
struct GraceSwarm : ScriptedSwarm {
  GraceSwarm() : ScriptedSwarm(spec()) {
    start();
    for (const auto& miner : miners) miner->habits.uploads = miner->habits.reduces = false;
    train(4);
    const auto half = world.core().spec_order("merge.quorum", "0.5");
    TESSERA_CHECK(half.ok() && *half);
    world.step(**half);
  }
  static core::RunSpec spec() {
    core::RunSpec spec = small_spec(1, 4);
    spec.training.steps = 1000;
    spec.merge.quorum = 1;  // until everybody is invited
    spec.timeouts.upload_grace_ms = 100;
    return spec;
  }
  void upload(uint32_t replica) {
    at(0, replica).habits.uploads = true;
    at(0, replica).sync();
    at(0, replica).sync();
  }
};

TEST(Grace, BeginsWithTheQuorumAndLateUploadsInItCount) {
  GraceSwarm swarm;
  ASSERT_TRUE(swarm.world.stage(0).merge);
  ASSERT_EQ(swarm.world.stage(0).merge->invited.size(), 4u);
  swarm.upload(0);
  swarm.world.pass(150);
  EXPECT_EQ(swarm.world.stage(0).merge->phase, MergePhase::kSnapshot);  // no quorum: the whole phase
  swarm.upload(1);
  swarm.world.pass(60);
  swarm.upload(2);  // late, and it does not make the others wait longer
  swarm.world.pass(39);
  EXPECT_EQ(swarm.world.stage(0).merge->phase, MergePhase::kSnapshot);
  swarm.world.pass(1);
  ASSERT_EQ(swarm.world.stage(0).merge->phase, MergePhase::kReduce);
  EXPECT_THAT(swarm.world.stage(0).merge->participants, testing::SizeIs(3));
}

TEST(Grace, AnUploadAfterItIsToldSoAndCountsInTheNextMerge) {
  GraceSwarm swarm;
  swarm.upload(0);
  swarm.upload(1);
  swarm.world.pass(100);
  ASSERT_TRUE(swarm.reducing());
  ScriptedMiner& late = swarm.at(0, 3);
  const uint32_t fresh = late.record().fresh_total();
  ASSERT_EQ(fresh, 4u);
  core::SyncRequest report = late.report();
  report.upload = core::UploadCommit{1, digest_of("late"), 2, 2};
  core::SyncAnswer answer;
  for (int again = 0; again < 3; ++again) {
    ASSERT_TRUE(swarm.world.sync(late.node(), report, &answer));
    EXPECT_THAT(answer.reason, testing::HasSubstr("came after its grace; go on training"));
  }
  EXPECT_EQ(swarm.world.stage(0).merge->uploads.size(), 2u);
  for (const auto& miner : swarm.miners) miner->habits.reduces = miner->habits.uploads = true;
  ASSERT_TRUE(swarm.sync_until([&] { return late.record().epoch == 1; }));
  EXPECT_EQ(late.record().fresh_total(), fresh);
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 2; }));
  EXPECT_THAT(swarm.world.stage(0).past.back().participants, testing::Contains(late.index()));
}

// Every message of a merge once more, and from the phase before: nothing changes.
TEST(Grace, PhaseChangesAreIdempotent) {
  GraceSwarm swarm;
  for (const auto& miner : swarm.miners) miner->habits.uploads = true;
  swarm.sync_all();
  swarm.sync_all();
  ASSERT_TRUE(swarm.reducing());
  const auto events = swarm.world.events;
  const auto repeat = [&] {
    const uint32_t first = swarm.world.stage(0).merge ? swarm.world.stage(0).merge->first_shard : 0;
    const Epoch epoch = swarm.world.stage(0).epoch;
    const uint64_t merges = swarm.world.stage(0).merges;
    for (const core::Event& event : events) {
      const bool of_merge = std::holds_alternative<core::UploadCommitted>(event) ||
                            std::holds_alternative<core::StateHeld>(event) ||
                            std::holds_alternative<core::StatePublished>(event);
      if (of_merge) swarm.world.step(event);
    }
    swarm.world.step(core::Ticked{});
    EXPECT_EQ(swarm.world.stage(0).epoch, epoch);
    EXPECT_EQ(swarm.world.stage(0).merges, merges);
    EXPECT_EQ(swarm.world.stage(0).merge ? swarm.world.stage(0).merge->first_shard : 0, first);
  };
  repeat();
  for (const auto& miner : swarm.miners) miner->habits.reduces = true;
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.stage(0).epoch == 1; }));
  repeat();
}

}  // namespace
}  // namespace tessera::test
