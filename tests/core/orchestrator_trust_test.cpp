// Merges among participants that lie, and what they could learn of each other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/merge_rounds.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::MergeFault;

core::RunSpec spec_of(uint32_t miners) {
  core::RunSpec spec = small_spec(1, miners);
  spec.training.steps = 1000;
  spec.merge.quorum = 1;  // everyone takes part
  spec.model.ffn_width = 128;  // more blocks than shards
  TESSERA_CHECK(core::stage_value_count(spec, 0) > 256 * miners * (miners - 1) / 2);
  return spec;
}

// Names what the orchestrator's own reduction would.
void recompute_all(OrchestratorWorld& world) {
  while (!world.recomputations.empty()) {
    const core::RecomputeShard job = world.recomputations.front();
    world.recomputations.pop_front();
    const core::ShardTask task{job.shard, job.first_block, job.block_count, job.token};
    world.step(core::ShardRecomputed{job.stage, reduction(job.target, job.uploads, task), {}});
  }
}

bool merge_once(ScriptedSwarm& swarm, Epoch epoch = 1) {
  return swarm.sync_until([&] {
    recompute_all(swarm.world);
    return swarm.world.stage(0).epoch == epoch;
  });
}

std::set<MinerIndex> accused(const ScriptedSwarm& swarm) {
  std::set<MinerIndex> miners;
  for (const core::MergeVerdict& verdict : swarm.world.stage(0).merge_verdicts) miners.insert(verdict.miner);
  return miners;
}

TEST(MergeTrust, ALiarIsNamedOnceAShardWithItsEvidence) {
  ScriptedSwarm swarm(spec_of(5));
  swarm.start();
  swarm.at(0, 3).habits.lies = true;
  swarm.train(4);
  ASSERT_TRUE(merge_once(swarm));
  const core::StageRecord& stage = swarm.world.stage(0);
  EXPECT_EQ(accused(swarm), (std::set<MinerIndex>{3}));
  EXPECT_EQ(stage.merge_verdicts.size(), 4u);  // all its shards
  for (const core::MergeVerdict& verdict : stage.merge_verdicts) {
    EXPECT_EQ(verdict.fault, MergeFault::kWrongReduction);
    EXPECT_NE(verdict.committed, verdict.expected);
    EXPECT_GT(verdict.block_count, 0u);
  }
  uint32_t wrong = 0;
  for (const core::ShardRecord& shard : stage.merge_records.back().shards) {
    wrong += (shard.outcome_a == core::OwnerOutcome::kWrong) + (shard.outcome_b == core::OwnerOutcome::kWrong);
    EXPECT_EQ(shard.owner_a == 3 || shard.owner_b == 3, shard.recomputed);
  }
  EXPECT_EQ(wrong, 4u);
}

TEST(MergeTrust, CallingAReadableUploadUnreadableIsNamedAndCostsNothing) {
  ScriptedSwarm swarm(spec_of(4));
  swarm.start();
  swarm.at(0, 1).habits.cannot_read = 2;
  swarm.train(4);
  ASSERT_TRUE(merge_once(swarm));
  EXPECT_EQ(accused(swarm), (std::set<MinerIndex>{1}));
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts[0].fault, MergeFault::kUnavailableWithoutCause);
  EXPECT_EQ(swarm.world.stage(0).past[0].participants.size(), 4u);
}

// Two that own a shard together and agree on a lie are found by the sample alone.
TEST(MergeTrust, APairThatAgreesOnALieIsFoundInTheSample) {
  for (const double share : {0.0, 1.0}) {
    core::RunSpec spec = spec_of(3);
    spec.merge.sample_share = share;
    ScriptedSwarm swarm(spec);
    swarm.start();
    for (const auto& miner : swarm.miners) miner->habits.reduces = false;
    swarm.train(4);
    ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
    reduce_with_a_pair(swarm, honest_commit, [](core::ShardCommit* commit) { commit->result = digest_of("their lie"); });
    recompute_all(swarm.world);
    EXPECT_EQ(swarm.world.stage(0).epoch, 1u);
    EXPECT_EQ(accused(swarm), share == 0 ? (std::set<MinerIndex>{}) : (std::set<MinerIndex>{0, 1}));
  }
}

// Everyone measures the same of uploads, so the measures can be told to everyone's scripted miner at once.
TEST(MergeTrust, TheGateLeavesAnUploadOutAndTheOthersAreReducedAnew) {
  ScriptedSwarm swarm(spec_of(4));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  const uint32_t first_round = swarm.world.stage(0).merge->first_shard;
  const auto measured = [](const std::vector<core::UploadRef>& uploads, const core::ShardTask& task) {
    core::ShardCommit commit = reduction(1, uploads, task);
    commit.measures[2] = {1e6, 5e5};
    commit.measures[1] = {1, -0.9};
    return commit;
  };
  for (const auto& miner : swarm.miners) {
    const core::MergeDirective directive = *miner->sync().merge;
    for (const core::ShardTask& task : directive.tasks) {
      swarm.world.step(core::ShardCommitted{miner->index(), measured(directive.uploads, task)});
    }
  }
  EXPECT_EQ(swarm.world.recomputations.size(), 6u);  // before that decides, the orchestrator looks itself
  while (!swarm.world.recomputations.empty()) {
    const core::RecomputeShard job = swarm.world.recomputations.front();
    swarm.world.recomputations.pop_front();
    swarm.world.step(core::ShardRecomputed{
        job.stage, measured(job.uploads, {job.shard, job.first_block, job.block_count, job.token}), {}});
  }
  const core::Merge& merge = *swarm.world.stage(0).merge;
  EXPECT_EQ(merge.round, 1u);
  EXPECT_NE(merge.first_shard, first_round);
  EXPECT_EQ(merge.participants, (std::vector<MinerIndex>{0, 3}));
  ASSERT_EQ(swarm.world.stage(0).merge_verdicts.size(), 2u);
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts[0].fault, MergeFault::kCosine);
  EXPECT_EQ(swarm.world.stage(0).merge_verdicts[1].fault, MergeFault::kNorm);
  for (const auto& miner : swarm.miners) miner->habits.reduces = true;
  ASSERT_TRUE(merge_once(swarm));
  EXPECT_EQ(swarm.at(0, 2).record().fresh_total(), 4u);  // its work is still its own
  EXPECT_EQ(swarm.at(0, 0).record().fresh_total(), 0u);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 2).record().epoch == 1; }));  // and it is a replica like any other
}

TEST(MergeTrust, WorkThatMissedTooManyMergesIsDropped) {
  core::RunSpec spec = spec_of(2);
  spec.merge.max_staleness = 2;
  spec.merge.quorum = 0.5;
  ScriptedSwarm swarm(spec);
  swarm.start();
  swarm.at(0, 1).habits.uploads = false;
  for (Epoch epoch = 1; epoch <= 4; ++epoch) {
    for (int i = 0; i < 4; ++i) swarm.train_one(0);
    if (epoch == 1) swarm.train_one(1);
    for (int i = 0; i < 20 && swarm.world.stage(0).epoch < epoch; ++i) {
      swarm.sync_all();
      recompute_all(swarm.world);
      swarm.world.pass(200);
    }
    ASSERT_EQ(swarm.world.stage(0).epoch, epoch);
    ASSERT_TRUE(swarm.sync_until([&] { return swarm.at(0, 1).record().epoch == epoch; }));
    EXPECT_EQ(swarm.at(0, 1).record().fresh_total(), epoch <= 2 ? 1u : 0u) << epoch;
  }
  EXPECT_TRUE(swarm.world.said("carried work over more than 2 merges"));
}

// What a miner is told in a merge, with the names of its own attempt taken out.
struct Told {
  std::vector<core::SyncAnswer> answers;
  std::string text;  // of everything it was told and may ask for
};

Told watch_one(uint64_t secret) {
  core::RunSpec spec = spec_of(5);
  ScriptedSwarm swarm(spec, secret);
  swarm.start();
  swarm.train(4);
  Told told;
  while (swarm.world.stage(0).epoch == 0) {
    for (const auto& miner : swarm.miners) {
      const core::SyncAnswer& answer = miner->sync();
      if (miner->index() != 0 || !answer.merge) continue;
      for (const core::ShardTask& task : answer.merge->tasks) {
        told.text += fmt::format("{}+{} ", task.first_block, task.block_count);
      }
      told.text += encode(answer.merge->uploads);
      told.answers.push_back(answer);
    }
  }
  return told;
}

std::vector<std::pair<uint64_t, uint64_t>> blocks_of(const core::SyncAnswer& answer) {
  std::vector<std::pair<uint64_t, uint64_t>> blocks;
  for (const core::ShardTask& task : answer.merge->tasks) blocks.emplace_back(task.first_block, task.block_count);
  return blocks;
}

const core::SyncAnswer* first_tasks(const Told& told) {
  for (const core::SyncAnswer& answer : told.answers) {
    if (!answer.merge->tasks.empty()) return &answer;
  }
  return nullptr;
}

// Of all worlds in which a miner owns the same shards, it is told the same, whoever owns the others with whom: but for
// tokens and numbers, which are digests of the secret.
TEST(MergeSecrecy, WhatAMinerIsToldIsTheSameWhoeverElseIsPaired) {
  std::map<std::vector<std::pair<uint64_t, uint64_t>>, std::string> worlds;
  int compared = 0;
  for (uint64_t secret = 1; secret <= 200; ++secret) {
    const Told told = watch_one(secret);
    const core::SyncAnswer* answer = first_tasks(told);
    ASSERT_NE(answer, nullptr);
    EXPECT_EQ(answer->merge->tasks.size(), 4u);
    const auto [known, fresh] = worlds.emplace(blocks_of(*answer), told.text);
    if (fresh) continue;
    EXPECT_EQ(known->second, told.text) << secret;
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

TEST(MergeSecrecy, NobodyIsGivenATokenOrANameOfAnothersCopyBeforeTheMergeIsOver) {
  ScriptedSwarm swarm(spec_of(5));
  swarm.start();
  swarm.train(4);
  std::set<std::string> tokens;
  size_t tasks = 0;
  while (swarm.world.stage(0).epoch == 0) {
    for (const auto& miner : swarm.miners) {
      const bool before = swarm.world.stage(0).epoch == 0;
      const core::SyncAnswer& answer = miner->sync();
      if (!before || !answer.merge || swarm.world.stage(0).epoch > 0) continue;
      EXPECT_TRUE(answer.merge->results.empty());
      for (const core::ShardTask& task : answer.merge->tasks) {
        if (tokens.insert(task.token.hex()).second) ++tasks;
      }
    }
  }
  EXPECT_EQ(tasks, tokens.size());
  EXPECT_GE(tasks, 12u);  // of 20: who is told last may be told that it is over
  for (const core::ShardResult& result : swarm.world.stage(0).past[0].results) {
    ASSERT_EQ(result.copies.size(), 2u);
    EXPECT_NE(result.copies[0].object, result.copies[1].object);  // equal results share no name
    EXPECT_NE(result.copies[0].token, result.copies[1].token);
  }
}

// The public part of the ledger does not tell either: what names owners of shards is sealed until the merge is over.
TEST(MergeSecrecy, EventsThatNameOwnersAreSealedUntilTheMergeIsOver) {
  for (const bool completes : {true, false}) {
    ScriptedSwarm swarm(spec_of(3));
    swarm.start();
    swarm.train(4);
    ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
    if (completes) {
      ASSERT_TRUE(merge_once(swarm));
    } else {
      swarm.world.step(core::Commanded{core::Command::kCheckpoint});
      swarm.world.pass(swarm.world.state().spec.timeouts.lease_ms);
      EXPECT_EQ(swarm.world.stage(0).merges_aborted + swarm.world.stage(0).merges, 1u);
    }
    const uint64_t id = core::merge_seal_id(0, 1, 0);
    std::set<std::string> unsealed;
    for (const core::Event& event : swarm.world.events) {
      if (const auto* key = std::get_if<core::SecretUnsealed>(&event)) {
        EXPECT_EQ(key->id, id);
        unsealed.insert(key->kind);
        continue;
      }
      const bool tells = std::holds_alternative<core::ShardCommitted>(event) || std::holds_alternative<core::ShardRecomputed>(event);
      EXPECT_EQ(core::seal_id(event).has_value(), tells) << core::event_name(event);
      if (tells) {
        EXPECT_EQ(*core::seal_id(event), id);
        EXPECT_TRUE(unsealed.empty());
      }
    }
    // A try that was aborted is begun again under the same key.
    EXPECT_EQ(unsealed, swarm.world.stage(0).merges == 0 ? std::set<std::string>()
                                                         : (std::set<std::string>{"shard_committed", "shard_recomputed"}));
  }
}

// Whoever reads the ledger has the signed commitment, and what the orchestrator made of the same blocks.
TEST(MergeTrust, TheLedgerHasWhatAVerdictRestsOn) {
  ScriptedSwarm swarm(spec_of(4));
  swarm.start();
  swarm.at(0, 1).habits.lies = true;
  swarm.train(4);
  ASSERT_TRUE(merge_once(swarm));
  size_t verdicts = 0;
  for (const core::Event& event : swarm.world.events) {
    const auto* recorded = std::get_if<core::VerdictRecorded>(&event);
    if (recorded == nullptr) continue;
    EXPECT_TRUE(recorded->verdict.evidence.is_zero());  // it is no blob
    const core::MergeVerdict& found = swarm.world.stage(0).merge_verdicts.at(verdicts++);
    const auto names = [&](const std::string& text) { return recorded->verdict.reason.find(text) != std::string::npos; };
    EXPECT_TRUE(names(fmt::format("shard {} ", found.shard)) && names(found.committed.hex()) && names(found.expected.hex()))
        << recorded->verdict.reason;
    bool committed = false, recomputed = false;
    for (const core::Event& evidence : swarm.world.events) {
      if (const auto* commit = std::get_if<core::ShardCommitted>(&evidence)) {
        committed |= commit->miner == found.miner && commit->commit.shard == found.shard &&
                     commit->commit.result == found.committed;
      } else if (const auto* own = std::get_if<core::ShardRecomputed>(&evidence)) {
        recomputed |= own->commit.shard == found.shard && own->commit.result == found.expected;
      }
    }
    EXPECT_TRUE(committed && recomputed);
  }
  EXPECT_EQ(verdicts, 3u);
}

TEST(MergeTrust, WrongMeasuresOfARightResultAreCalledThat) {
  ScriptedSwarm swarm(spec_of(2));
  swarm.start();
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.train(4);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(); }));
  for (const auto& miner : swarm.miners) {
    const core::MergeDirective directive = *miner->sync().merge;
    core::ShardCommit commit = reduction(1, directive.uploads, directive.tasks.at(0));
    if (miner->index() == 1) commit.measures[0] = {1e6, 5e5};
    swarm.world.step(core::ShardCommitted{miner->index(), commit});
  }
  recompute_all(swarm.world);
  EXPECT_EQ(accused(swarm), (std::set<MinerIndex>{1}));
  EXPECT_TRUE(swarm.world.said("is right, its measures of the uploads are not"));
}

// With a trimmed mean a manifest has a limit; who is beyond it comes first in the next merge.
TEST(MergeTrust, OfMoreUploadsThanATrimmedMeanTakesAllHaveTheirTurn) {
  core::RunSpec spec = small_spec(1, core::kMaxTrimmedUploads + 2);
  spec.training.steps = 1000;
  spec.merge.quorum = 1;
  spec.merge.trim_share = 0.1;
  ScriptedSwarm swarm(spec);
  swarm.start();
  std::set<MinerIndex> merged;
  for (Epoch epoch = 1; epoch <= 2; ++epoch) {
    for (int i = 0; i < 4; ++i) {
      for (uint32_t replica = 0; replica < swarm.miners.size(); ++replica) swarm.train_one(replica);
    }
    ASSERT_TRUE(merge_once(swarm, epoch));
    const std::vector<MinerIndex> participants = swarm.world.stage(0).merge_records.back().participants;
    EXPECT_EQ(participants.size(), core::kMaxTrimmedUploads);
    EXPECT_TRUE(std::is_sorted(participants.begin(), participants.end()));
    merged.insert(participants.begin(), participants.end());
  }
  EXPECT_EQ(merged.size(), swarm.miners.size());
}

TEST(MergeTrust, EveryVerdictIsAnEventOfTheLedger) {
  ScriptedSwarm swarm(spec_of(4));
  swarm.start();
  swarm.at(0, 1).habits.lies = true;
  swarm.at(0, 2).habits.cannot_read = 0;
  swarm.train(4);
  ASSERT_TRUE(merge_once(swarm));
  uint32_t fraud = 0, infrastructure = 0;
  for (const core::Event& event : swarm.world.events) {
    const auto* recorded = std::get_if<core::VerdictRecorded>(&event);
    if (recorded == nullptr) continue;
    EXPECT_FALSE(recorded->verdict.passed);
    EXPECT_EQ(recorded->verdict.epoch, 0u);  // in which the work was done that merged to epoch 1
    EXPECT_EQ(recorded->verdict.miner, core::voids_epoch(recorded->verdict) ? 1u : 2u);
    (core::voids_epoch(recorded->verdict) ? fraud : infrastructure)++;
  }
  // The liar's third shard is its with the one that can't read: the orchestrator's own reduction settles it first, and what is
  // committed after that is not looked at.
  EXPECT_EQ(fraud, 2u);
  EXPECT_EQ(infrastructure, 3u);
}

}  // namespace
}  // namespace tessera::test
