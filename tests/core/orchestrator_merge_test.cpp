// Merges: when they begin, who takes part, what becomes of faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/merge_rounds.h"

namespace tessera::test {
namespace {

using core::MergePhase;

TEST(Merge, BeginsWhenTheQuorumHasItsMicrobatches) {
  core::RunSpec spec = one_stage(4);
  spec.merge.quorum = 0.75;
  ScriptedSwarm swarm(spec);
  swarm.start();
  const auto train_first = [&](uint32_t miners) {
    for (int i = 0; i < 4; ++i) swarm.train_one(miners);
    swarm.at(0, miners).sync();
  };
  train_first(0);
  train_first(1);
  EXPECT_FALSE(swarm.world.stage(0).merge);
  swarm.at(0, 2).habits.uploads = false;
  train_first(2);
  ASSERT_TRUE(swarm.world.stage(0).merge);
  const core::Merge& merge = *swarm.world.stage(0).merge;
  EXPECT_EQ(merge.target, 1u);
  EXPECT_EQ(merge.phase, MergePhase::kSnapshot);
  EXPECT_EQ(merge.invited, (std::set<MinerIndex>{swarm.at(0, 0).index(), swarm.at(0, 1).index(),
                                                 swarm.at(0, 2).index()}));
}

// Gradients that no optimizer step has taken up yet are not in any snapshot.
TEST(Merge, APartialGradientDoesNotQualify) {
  core::RunSpec spec = one_stage(1);
  spec.training.microbatches_per_step = 3;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.train(5);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 5u);
  EXPECT_FALSE(swarm.world.stage(0).merge);
  swarm.train(1);
  EXPECT_TRUE(merge_until(swarm, [&] { return swarm.world.stage(0).epoch == 1; }));
}

TEST(Merge, ThreeMinersReachTheNextEpochWithOneState) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  swarm.train(4);
  const core::StageRecord& stage = swarm.world.stage(0);
  ASSERT_TRUE(swarm.sync_until([&] { return stage.epoch == 1 && stage.state_published; }));
  EXPECT_EQ(stage.merges, 1u);
  EXPECT_EQ(stage.merges_aborted, 0u);
  EXPECT_EQ(stage.replica_mismatches, 0u);
  EXPECT_FALSE(stage.state.is_zero());
  ASSERT_EQ(stage.past.size(), 1u);
  EXPECT_EQ(stage.past[0].from, seed_state(0));
  EXPECT_EQ(stage.past[0].results.size(), 3u);  // one a pair
  for (const auto& miner : swarm.miners) {
    EXPECT_EQ(miner->record().epoch, 1u);
    EXPECT_EQ(miner->record().fresh_total(), 0u);
    EXPECT_FALSE(miner->record().upload);
    EXPECT_TRUE(miner->record().ready);
  }
}

TEST(Merge, AnOwnerSeesOnlyItsOwnShards) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  std::map<uint32_t, int> owners;
  for (const auto& miner : swarm.miners) {
    const core::MergeDirective& directive = *miner->sync().merge;
    EXPECT_EQ(directive.tasks.size(), 2u);
    EXPECT_EQ(directive.uploads.size(), 3u);
    for (const core::ShardTask& task : directive.tasks) owners[task.shard]++;
  }
  const uint32_t first = swarm.world.stage(0).merge->first_shard;
  EXPECT_EQ(owners, (std::map<uint32_t, int>{{first, 2}, {first + 1, 2}, {first + 2, 2}}));
}

// Others' results may be fetched before anyone can read them. What is named, and when, says nothing about who shares with whom: only
// rounds in which everyone is done are, each once.
TEST(Merge, SealedResultsAreNamedInWholeRounds) {
  core::RunSpec spec = one_stage(4);
  spec.model.ffn_width = 256;  // more blocks than shards
  spec.merge.sample_share = 0;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  const core::Merge merge = *swarm.world.stage(0).merge;
  ASSERT_EQ(merge.shards.size(), 6u);  // three rounds of two
  const auto told = [&](size_t p, uint64_t heard) {
    core::SyncRequest request = swarm.at(0, p).report();
    request.sealed_heard = heard;
    return swarm.world.core().answer_for(request).merge.value_or(core::MergeDirective{});
  };
  const auto commit = [&](size_t p, size_t shard) {
    const core::MergeDirective directive = told(p, 0);
    for (const core::ShardTask& task : directive.tasks) {
      if (task.shard == merge.first_shard + shard) {
        swarm.world.step(core::ShardCommitted{swarm.at(0, p).index(), honest_commit(directive, task)});
      }
    }
  };
  const auto named = [&](size_t p, uint64_t heard) {
    std::vector<uint64_t> blocks;
    for (const core::SealedResult& result : told(p, heard).sealed) blocks.push_back(result.first_block);
    return blocks;
  };
  EXPECT_EQ(told(0, 0).rounds, 3u);
  // Whole shards of every round, but one owner is late in the first: nothing is named.
  for (size_t shard = 0; shard < 5; ++shard) {
    commit(merge.shards[shard].owner_a, shard);
    if (shard > 0) commit(merge.shards[shard].owner_b, shard);
  }
  for (size_t p = 0; p < 4; ++p) EXPECT_TRUE(named(p, 0).empty());
  commit(merge.shards[0].owner_b, 0);
  for (size_t p = 0; p < 4; ++p) {
    std::vector<uint64_t> others;
    for (size_t shard = 0; shard < 4; ++shard) {  // the third round is not whole
      const core::MergeShard& known = merge.shards[shard];
      if (known.owner_a != p && known.owner_b != p && known.plan.block_count > 0) others.push_back(known.plan.first_block);
    }
    EXPECT_EQ(named(p, 0), others);
    const uint64_t heard = told(p, 0).sealed_heard;
    EXPECT_TRUE(named(p, heard).empty());
    EXPECT_EQ(named(p, 1), others);  // heard of another attempt
    EXPECT_TRUE(named(p, ~uint64_t{0}).size() == others.size());
  }
}

// More than that no miner takes for an answer.
TEST(Merge, UploadsHaveNoMoreRoundsThanAManifestHasUploads) {
  core::Merge merge;
  for (MinerIndex miner = 0; miner < core::kMaxUploads + 500; ++miner) merge.invited.insert(miner);
  EXPECT_EQ(merge.upload_rounds(), core::kMaxUploads - 1);
  merge.invited = {3, 5, 8};
  EXPECT_EQ(merge.upload_rounds(), 3u);
}

TEST(Merge, OnlyOwedCommitmentsAreNewsAndEachOnce) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return !swarm.at(0, 0).report().shards.empty(); }));
  core::SyncRequest request = swarm.at(0, 0).report();
  const std::vector<core::ShardCommit> owed = swarm.world.core().owed_commits(request);
  ASSERT_FALSE(owed.empty());
  request.shards.insert(request.shards.end(), owed.begin(), owed.end());
  core::ShardCommit stray = owed.front();
  stray.shard += 1000;
  request.shards.push_back(stray);
  stray = owed.front();
  stray.target++;
  request.shards.push_back(stray);
  EXPECT_EQ(swarm.world.core().owed_commits(request).size(), owed.size());
}

TEST(Merge, WeightsAreTheCountedMicrobatchesUpToTheSnapshot) {
  core::RunSpec spec = one_stage(2);
  spec.merge.quorum = 0.5;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.uploads = miner->habits.reduces = false;
  for (int i = 0; i < 9; ++i) swarm.train_one(1);
  for (int i = 0; i < 4; ++i) swarm.train_one(0);
  swarm.sync_all();
  ASSERT_TRUE(swarm.world.stage(0).merge);
  EXPECT_EQ(swarm.world.stage(0).merge->invited,
            (std::set<MinerIndex>{1}));  // the quorum was there with it
  swarm.at(0, 1).habits.uploads = true;
  swarm.at(0, 1).sync();  // takes the snapshot: 8 gradients in 4 steps, one more in the next
  swarm.at(0, 1).sync();
  const core::Merge& merge = *swarm.world.stage(0).merge;
  ASSERT_EQ(merge.phase, MergePhase::kReduce);
  EXPECT_EQ(merge.counts, (std::vector<uint32_t>{8}));
  swarm.at(0, 1).habits.reduces = true;
  swarm.at(0, 1).sync();
  swarm.at(0, 1).sync();
  finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_EQ(swarm.at(0, 1).record().fresh_total(), 1u);
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(),
            4u);  // it took no part: its work counts in the next
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_EQ(swarm.at(0, 0).record().epoch, 1u);
}

TEST(Merge, TheDeadlineFreezesWithTheUploadsThatAreThere) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  swarm.at(0, 2).habits.uploads = false;
  swarm.at(0, 0).habits.reduces = swarm.at(0, 1).habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] {
    return swarm.world.stage(0).merge && swarm.world.stage(0).merge->uploads.size() == 2;
  }));
  swarm.world.pass(499);
  EXPECT_EQ(swarm.world.stage(0).merge->phase, MergePhase::kSnapshot);
  swarm.world.pass(1);
  ASSERT_EQ(swarm.world.stage(0).merge->phase, MergePhase::kReduce);
  EXPECT_EQ(swarm.world.stage(0).merge->participants.size(), 2u);
  EXPECT_EQ(swarm.world.stage(0).merge->shards.size(), 1u);
  swarm.at(0, 0).habits.reduces = swarm.at(0, 1).habits.reduces = true;
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 2).record().epoch == 1; }));
  EXPECT_EQ(swarm.at(0, 2).record().fresh_total(), 4u);
}

TEST(Merge, NoUploadInTimeAbortsAndKeepsTheCounts) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.uploads = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.world.stage(0).merge);
  EXPECT_FALSE(swarm.at(0, 0).record().upload);
  swarm.world.pass(500);
  EXPECT_EQ(swarm.world.stage(0).merges_aborted, 1u);
  EXPECT_EQ(swarm.world.stage(0).epoch, 0u);
  for (const auto& miner : swarm.miners) EXPECT_EQ(miner->record().fresh_total(), 4u);
  for (const auto& miner : swarm.miners) miner->habits.uploads = true;
  swarm.world.pass(500);
  for (int i = 0; i < 5; ++i) swarm.sync_all();
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
}

TEST(Merge, OneMinerMergesAlone) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.recomputations.size() == 1; }));
  EXPECT_EQ(swarm.world.stage(0).epoch, 0u);  // its word alone is not enough
  finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_EQ(swarm.world.stage(0).past[0].results.size(), 1u);
  EXPECT_EQ(swarm.world.stage(0).past[0].results[0].copies.size(), 2u);
}

// The outer momentum grows from 0 over the first merges of a stage; each merge says with what it is to be applied.
TEST(Merge, TheMomentumWarmsUp) {
  core::RunSpec spec = one_stage(1);
  spec.merge.outer_momentum = 0.8;
  spec.merge.outer_momentum_warmup = 2;
  spec.merge.max_staleness = 4;
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (Epoch epoch = 1; epoch <= 4; ++epoch) {
    swarm.train(4);
    ASSERT_TRUE(merge_until(swarm, [&] { return swarm.at(0, 0).record().epoch == epoch; }));
  }
  std::vector<double> momenta;
  for (const core::PastMerge& past : swarm.world.stage(0).past) momenta.push_back(past.outer_momentum);
  EXPECT_EQ(momenta, (std::vector<double>{0, 0.4, 0.8, 0.8}));
}

TEST(Merge, OwnersThatDisagreeAreJudgedByARecomputation) {
  ScriptedSwarm swarm(one_stage(2));
  swarm.start();
  swarm.at(0, 1).habits.lies = true;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.world.recomputations.size() == 1; }));
  EXPECT_EQ(swarm.world.stage(0).epoch, 0u);
  EXPECT_EQ(swarm.world.recomputations[0].uploads.size(), 2u);
  finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_EQ(swarm.world.stage(0).shards_recomputed, 1u);
  EXPECT_TRUE(swarm.world.said("miner 1 committed a wrong reduction"));
  EXPECT_FALSE(swarm.world.said("miner 0 committed a wrong reduction"));
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_EQ(swarm.at(0, 1).record().epoch, 1u);
}

TEST(Merge, ADeadOwnersShardsAreGivenToAnotherParticipantAtOnceAndASilentOnesAtTheDeadline) {
  core::RunSpec spec = one_stage(4);
  spec.model.ffn_width = 64;  // more blocks than shards
  ScriptedSwarm swarm(spec);
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  swarm.world.step(core::MinerLost{swarm.at(0, 3).index(), "silent"});
  EXPECT_TRUE(swarm.world.recomputations.empty());
  EXPECT_EQ(swarm.world.stage(0).shards_rescued, 3u);
  swarm.at(0, 0).habits.reduces = swarm.at(0, 1).habits.reduces = true;  // miner 2 stays silent
  for (int i = 0; i < 4; ++i) {
    swarm.at(0, 0).sync();
    swarm.at(0, 1).sync();
  }
  EXPECT_EQ(swarm.world.stage(0).epoch, 0u);
  swarm.world.pass(500);  // its shards go to others, which get another phase
  const uint64_t rescued = swarm.world.stage(0).shards_rescued;
  EXPECT_GT(rescued, 3u);
  swarm.world.pass(499);
  EXPECT_EQ(swarm.world.stage(0).shards_rescued, rescued);
  while (swarm.world.stage(0).epoch == 0) {
    swarm.at(0, 0).sync();
    swarm.at(0, 1).sync();
    while (!swarm.world.recomputations.empty()) finish_recomputation(swarm.world);
  }
  EXPECT_EQ(swarm.world.stage(0).past[0].participants.size(), 4u);  // its upload was in time
  const core::MergeRecord& record = swarm.world.stage(0).merge_records.back();
  EXPECT_EQ(record.lost_without_rescue, 1u);  // the one that both of them owned
  EXPECT_TRUE(swarm.world.stage(0).merge_verdicts.empty());  // an absence is no fault
}

TEST(Merge, WhoIsLeftAloneHasTheRestRecomputed) {
  ScriptedSwarm swarm(one_stage(3));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  swarm.world.step(core::MinerLost{swarm.at(0, 1).index(), "silent"});
  swarm.world.step(core::MinerLost{swarm.at(0, 2).index(), "silent"});
  EXPECT_EQ(swarm.world.recomputations.size(), 3u);
  while (!swarm.world.recomputations.empty()) finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  EXPECT_EQ(swarm.world.stage(0).shards_recomputed, 3u);
}

TEST(Merge, TheLastOwnerOfAMergeOfOneMayDie) {
  ScriptedSwarm swarm(one_stage(1));
  swarm.start();
  swarm.at(0, 0).habits.reduces = false;
  swarm.train(4);
  swarm.sync_all();
  swarm.world.step(core::MinerLost{0, "silent"});
  ASSERT_EQ(swarm.world.recomputations.size(), 1u);
  finish_recomputation(swarm.world);
  EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
  swarm.sync_all();
  swarm.sync_all();
  EXPECT_EQ(swarm.at(0, 0).record().epoch, 1u);
}

}  // namespace
}  // namespace tessera::test
