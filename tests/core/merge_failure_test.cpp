// Merges that fail, and come to an end all the same: uploads that can't be read, owners that agree on what nobody has, and
// owners that lie about what they measured.
#include <gtest/gtest.h>

#include <numeric>

#include "support/merge_rounds.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::MergeFault;

core::RunSpec wide_stage(uint32_t miners) {
  core::RunSpec spec = one_stage(miners);
  spec.merge.quorum = 1;
  spec.model.ffn_width = 256;  // more blocks than shards
  return spec;
}

// The orchestrator can't read the upload of `miner`.
void fail_to_read(OrchestratorWorld& world, MinerIndex miner) {
  ASSERT_FALSE(world.recomputations.empty());
  const core::RecomputeShard job = world.recomputations.front();
  world.recomputations.clear();
  world.step(core::ShardRecomputed{0, {.target = job.target, .shard = job.shard}, {world.stage(0).merge->uploads.at(miner).object}});
}

TEST(MergeFailures, ALoneMinerWhoseUploadCouldNotBeReadMakesAnother) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.recomputations.size() == 1; }));
  const Digest first = swarm.world.stage(0).merge->uploads.at(0).object;
  fail_to_read(swarm.world, 0);
  EXPECT_EQ(swarm.world.stage(0).merges_aborted, 1u);
  ASSERT_EQ(swarm.world.stage(0).merge_verdicts.size(), 1u);
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts[0].fault, MergeFault::kUnreadableUpload);
  for (int i = 0; i < 5; ++i) swarm.sync_all();
  EXPECT_FALSE(swarm.world.stage(0).merge);  // not at once
  swarm.world.pass(500);
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
  EXPECT_NE(swarm.world.stage(0).past[0].uploads.at(0).object, first);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 0u);
  swarm.train(4);
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 2; }));
}

TEST(MergeFailures, TheOldUploadsCommitmentIsNotTakenForTheNewOne) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.recomputations.size() == 1; }));
  const core::SyncRequest old_report = swarm.at(0, 0).report();
  fail_to_read(swarm.world, 0);
  swarm.world.pass(500);
  ASSERT_TRUE(swarm.world.stage(0).merge);
  core::SyncAnswer answer;
  ASSERT_TRUE(swarm.world.sync(swarm.at(0, 0).node(), old_report, &answer));
  EXPECT_TRUE(swarm.world.stage(0).merge->uploads.empty());
  ASSERT_TRUE(answer.merge);
  EXPECT_GT(answer.merge->again, 0u);
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
}

// Each pause is twice the one before, up to a phase's time; a merge that succeeds ends that.
TEST(MergeFailures, TriesAreFurtherAndFurtherApart) {
  core::RunSpec spec = one_stage(1);
  spec.timeouts.merge_phase_ms = 320;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 0).habits.uploads = false;
  swarm.train(4);
  std::vector<TimeMs> pauses;
  TimeMs aborted_at = 0;
  bool merging = true;
  for (int ms = 0; ms < 4000 && pauses.size() < 7; ++ms) {
    swarm.world.pass(1);
    swarm.sync_all();
    if (std::exchange(merging, swarm.world.stage(0).merge.has_value()) == swarm.world.stage(0).merge.has_value()) continue;
    if (merging) pauses.push_back(swarm.world.now() - aborted_at);
    aborted_at = swarm.world.now();
  }
  EXPECT_EQ(pauses, (std::vector<TimeMs>{10, 20, 40, 80, 160, 320, 320}));
  swarm.at(0, 0).habits.uploads = true;
  ASSERT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
  EXPECT_EQ(swarm.world.stage(0).aborts_in_row, 0u);
}

TEST(MergeFailures, TheLastMergeIsNotTriedForEver) {
  core::RunSpec spec = small_spec(1, 1);
  spec.training.steps = 2;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 0).habits.uploads = false;
  swarm.train(static_cast<uint32_t>(spec.total_microbatches()));
  for (int ms = 0; ms < 5000 && swarm.world.state().phase != core::RunPhase::kCheckpointing; ms += 10) {
    swarm.world.pass(10);
    swarm.sync_all();
  }
  EXPECT_EQ(swarm.world.state().phase, core::RunPhase::kCheckpointing);
}

// ---- results that nobody can have -------------------------------------------------------------------------------------

// Miners 0 and 1 agree on something else than the uploads give, for the shard that they share; the others find out. In the
// merge that this returns, that is done and the orchestrator was asked.
class AgreedLie : public ::testing::Test {
 protected:
  void SetUp() override {
    swarm.start();
    for (const auto& miner : swarm.miners) miner->habits.reduces = false;
    for (uint32_t m = 0; m < 4; ++m) swarm.at(0, m).habits.checks = true;
    swarm.train(4);
    ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
    shard = reduce_with_a_pair(swarm, honest_commit, [](core::ShardCommit* commit) { commit->result = digest_of("their lie"); });
    ASSERT_EQ(swarm.world.stage(0).epoch, 1u);
  }
  core::ResultRechecked made() {
    const core::RecheckResult job = swarm.world.rechecks.front();
    swarm.world.rechecks.pop_front();
    return {.stage = 0,
            .target = job.target,
            .first_block = job.result.first_block,
            .readable = false,
            .result = reduced(job.uploads, shard),
            .copy = {digest_of("made"), digest_of("token")},
            .why = {}};
  }

  ScriptedSwarm swarm{wide_stage(4)};
  core::ShardTask shard;
};

TEST_F(AgreedLie, IsMadeAgainAndBothAreNamed) {
  swarm.sync_all();
  swarm.sync_all();
  ASSERT_EQ(swarm.world.rechecks.size(), 1u);  // whoever else says so
  EXPECT_EQ(swarm.world.rechecks[0].result.first_block, shard.first_block);
  EXPECT_EQ(swarm.at(0, 2).record().epoch, 0u);
  swarm.world.step(made());
  const core::StageRecord& stage = swarm.world.stage(0);
  ASSERT_EQ(stage.merge_verdicts.size(), 2u);
  for (MinerIndex m = 0; m < 2; ++m) {
    EXPECT_EQ(stage.merge_verdicts[m].miner, m);
    EXPECT_EQ(stage.merge_verdicts[m].fault, MergeFault::kWrongReduction);
    EXPECT_EQ(stage.merge_verdicts[m].committed, digest_of("their lie"));
    EXPECT_EQ(stage.merge_verdicts[m].block_count, shard.block_count);
  }
  const auto& shards = stage.merge_records.back().shards;
  EXPECT_EQ(std::count_if(shards.begin(), shards.end(),
                          [](const core::ShardRecord& record) {
                            return record.outcome_a == core::OwnerOutcome::kWrong && record.outcome_b == core::OwnerOutcome::kWrong;
                          }),
            1);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 3).record().epoch == 1 && swarm.at(0, 2).record().epoch == 1; }));
  EXPECT_TRUE(swarm.world.rechecks.empty());
}

TEST_F(AgreedLie, LeavesNobodyBehindWhoSaysItHasAppliedIt) {
  swarm.at(0, 0).habits.checks = false;  // it says that it holds what nobody can hold
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_EQ(swarm.at(0, 0).record().epoch, 1u);
  ASSERT_EQ(swarm.world.rechecks.size(), 1u);
  swarm.world.step(made());
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.remakes.size() == 1; }));  // the others contradict it
  swarm.world.step(core::StateRemade{.stage = 0, .epoch = 1, .state = swarm.at(0, 2).state(), .why = {}});
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 2).record().epoch == 1 && swarm.at(0, 2).record().ready; }));
  EXPECT_EQ(swarm.world.stage(0).state, swarm.at(0, 2).state());
}

TEST_F(AgreedLie, IsLookedIntoAgainAfterARestart) {
  swarm.sync_all();
  swarm.sync_all();
  ASSERT_EQ(swarm.world.rechecks.size(), 1u);
  swarm.world.restart();
  ASSERT_EQ(swarm.world.rechecks.size(), 1u);
  swarm.world.step(made());
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts.size(), 2u);
}

TEST_F(AgreedLie, WhoseBytesWereRightButNotStoredIsAFaultOfInfrastructure) {
  swarm.sync_all();
  swarm.sync_all();
  core::ResultRechecked event = made();
  event.result = digest_of("their lie");
  swarm.world.step(event);
  ASSERT_EQ(swarm.world.stage(0).merge_verdicts.size(), 2u);
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts[0].fault, MergeFault::kUnreadableResult);
  EXPECT_EQ(swarm.at(0, 0).record().failed_verdicts, 0u);
}

TEST_F(AgreedLie, AFalseAlarmIsHeardOnlySoOften) {
  uint32_t alarms = 0;
  for (int i = 0; i < 100; ++i) {
    swarm.at(0, 2).sync();
    swarm.at(0, 2).sync();
    if (swarm.world.rechecks.empty()) break;
    core::ResultRechecked event = made();
    event.readable = true;
    event.result = Digest{};
    swarm.world.step(event);
    ++alarms;
  }
  EXPECT_EQ(alarms, 4u);
  EXPECT_TRUE(swarm.world.stage(0).merge_verdicts.empty());
  swarm.at(0, 3).sync();
  swarm.at(0, 3).sync();
  EXPECT_EQ(swarm.world.rechecks.size(), 1u);  // another one is heard
}

TEST_F(AgreedLie, IsNotTriedForEverIfTheUploadsAreGone) {
  uint32_t tries = 0;
  for (int i = 0; i < 100; ++i) {
    swarm.sync_all();
    swarm.sync_all();
    if (swarm.world.rechecks.empty()) break;
    core::ResultRechecked event = made();
    event.result = Digest{};
    event.why = "not found";
    swarm.world.step(event);
    ++tries;
  }
  EXPECT_EQ(tries, 8u);
}

// ---- the gate ----------------------------------------------------------------------------------------------------------

// Everyone reduces; the owners of the shard of 0 and 1 measure something else of upload 2. The orchestrator's own measures
// are the true ones.
void measure_falsely(ScriptedSwarm& swarm, const core::UploadMeasure& lie, const core::UploadMeasure& truth_of_2) {
  const auto truth = [&](Epoch target, const std::vector<core::UploadRef>& uploads, const core::ShardTask& task) {
    core::ShardCommit commit = reduction(target, uploads, task);
    if (commit.measures.size() > 2) commit.measures[2] = truth_of_2;
    return commit;
  };
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  reduce_with_a_pair(
      swarm, [&](const core::MergeDirective& directive, const core::ShardTask& task) { return truth(1, directive.uploads, task); },
      [&](core::ShardCommit* commit) { commit->measures[2] = lie; });
  while (!swarm.world.recomputations.empty()) {
    const core::RecomputeShard job = swarm.world.recomputations.front();
    swarm.world.recomputations.pop_front();
    swarm.world.step(core::ShardRecomputed{
        job.stage, truth(job.target, job.uploads, {job.shard, job.first_block, job.block_count, job.token}), {}});
  }
}

TEST(MergeGateTrust, APairsFalseMeasuresLeaveNoUploadOut) {
  for (const core::UploadMeasure lie : {core::UploadMeasure{1e12, 5e11}, core::UploadMeasure{-1, 0}, core::UploadMeasure{1, -1e6}}) {
    ScriptedSwarm swarm(wide_stage(7));
    swarm.start();
    measure_falsely(swarm, lie, {1.0, 0.5});
    const core::StageRecord& stage = swarm.world.stage(0);
    EXPECT_EQ(stage.epoch, 1u);
    EXPECT_EQ(stage.past.back().participants.size(), 7u);
    ASSERT_EQ(stage.merge_verdicts.size(), 2u);
    for (MinerIndex m = 0; m < 2; ++m) {
      EXPECT_EQ(stage.merge_verdicts[m].miner, m);
      EXPECT_EQ(stage.merge_verdicts[m].fault, MergeFault::kWrongReduction);
    }
    EXPECT_LE(stage.shards_recomputed, 8u);
  }
}

TEST(MergeGateTrust, AnUploadThatIsBadEverywhereIsLeftOutAfterEightShards) {
  ScriptedSwarm swarm(wide_stage(7));
  swarm.start();
  measure_falsely(swarm, {1e6, 5e5}, {1e6, 5e5});
  const core::StageRecord& stage = swarm.world.stage(0);
  ASSERT_EQ(stage.merge_verdicts.size(), 1u);
  EXPECT_EQ(stage.merge_verdicts[0].miner, 2u);
  EXPECT_EQ(stage.merge_verdicts[0].fault, MergeFault::kNorm);
  EXPECT_EQ(stage.shards_recomputed, 8u);
  ASSERT_TRUE(stage.merge);
  EXPECT_EQ(stage.merge->participants.size(), 6u);
}

// ---- how many take part ------------------------------------------------------------------------------------------------

TEST(MergeLimits, InALargeStageAllHaveTheirTurnAndTheResultsFitAnAnswer) {
  core::RunSpec spec = small_spec(1, core::kMaxUploadsOfLargeStages + 2);
  spec.training.steps = 1000;
  spec.merge.quorum = 1;
  spec.merge.block_values = 256;
  spec.model.vocab = 256 * core::kMaxResults / spec.model.width / 2 + 1;  // the embedding and the output, each half of the blocks
  ASSERT_GT(core::stage_value_count(spec, 0), 256 * core::kMaxResults);
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  for (int i = 0; i < 4; ++i) {
    for (uint32_t replica = 0; replica < swarm.miners.size(); ++replica) swarm.train_one(replica);
  }
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  EXPECT_EQ(swarm.world.stage(0).merge->participants.size(), core::kMaxUploadsOfLargeStages);
  EXPECT_LE(swarm.world.stage(0).merge->shards.size(), core::kMaxResults);
}

}  // namespace
}  // namespace tessera::test
