// Merging a stage, publishing it, checkpointing: what a miner does beside its microbatches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_merges.h"

namespace tessera::test {
namespace {

using core::MergePhase;
using namespace core::miner_effect;

TEST(MinerMerge, FromSnapshotToTheNextEpochWhileItTrains) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  train(lone, 0, 5);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  ASSERT_TRUE(lone.next_job_is<TakeSnapshot>());
  lone.finish_job();
  const auto upload = lone.take_background<UploadDelta>();
  EXPECT_EQ(upload.target, 1u);
  EXPECT_EQ(upload.snapshot_step, 2u);
  train(lone, 5, 1);  // goes on meanwhile
  lone.direct(directive(MergePhase::kSnapshot, 1));
  EXPECT_TRUE(lone.jobs.empty() && lone.background.empty());
  core::miner_event::DeltaUploaded uploaded;
  uploaded.commit = {1, digest_of("delta"), upload.snapshot_step, upload.snapshot_version};
  lone.step(uploaded);
  EXPECT_TRUE(lone.miner->report_is_urgent());
  EXPECT_EQ(lone.miner->report().upload->snapshot_step, 2u);
  EXPECT_FALSE(lone.miner->report().upload->whole);
  uploaded.commit.whole = true;  // its blocks are all there now
  lone.step(uploaded);
  EXPECT_TRUE(lone.miner->report_is_urgent());
  EXPECT_TRUE(lone.miner->report().upload->whole);

  core::MergeDirective reduce = directive(MergePhase::kReduce, 1);
  reduce.uploads = {{digest_of("delta"), 1.0f}};
  reduce.tasks = {{70, 0, 4}, {71, 4, 4}};
  lone.direct(reduce);
  lone.direct(reduce);
  ASSERT_EQ(lone.background.size(), 1u);
  const auto reduction = lone.take_background<ReduceShards>();
  ASSERT_EQ(reduction.tasks.size(), 2u);
  EXPECT_EQ(reduction.tasks[0].shard, 70u);
  EXPECT_EQ(reduction.tasks[1].shard, 71u);
  EXPECT_FALSE(reduction.uploads_whole);
  lone.step(core::miner_event::ShardReduced{{1, 70, digest_of("a")}, true, ""});
  lone.step(core::miner_event::ShardReduced{{1, 71, Digest{}}, false, "missing"});
  ASSERT_EQ(lone.miner->report().shards.size(), 1u);
  EXPECT_EQ(lone.miner->report().shards[0].shard, 70u);
  lone.direct(reduce);  // the failed one is tried again
  const auto again = lone.take_background<ReduceShards>();
  ASSERT_EQ(again.tasks.size(), 1u);
  EXPECT_EQ(again.tasks[0].shard, 71u);

  apply(lone, 1);
  const core::SyncRequest report = lone.miner->report();
  EXPECT_EQ(report.applied->epoch, 1u);
  EXPECT_EQ(report.applied->state, digest_of("state of 1"));
  EXPECT_EQ(report.status.epoch, 1u);
  EXPECT_FALSE(report.upload);
  EXPECT_TRUE(report.shards.empty());
}

TEST(MinerMerge, SealedResultsAreFetchedOnceAndAcknowledged) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  core::MergeDirective snapshot = directive(MergePhase::kSnapshot, 1);
  snapshot.rounds = 5;
  lone.direct(snapshot);
  lone.finish_job();
  EXPECT_EQ(lone.take_background<UploadDelta>().rounds, 5u);
  core::MergeDirective reduce = directive(MergePhase::kReduce, 1);
  reduce.uploads = {{digest_of("delta"), 1.0f}};
  reduce.tasks = {{70, 0, 4}};
  reduce.rounds = 5;
  lone.direct(reduce);
  EXPECT_EQ(lone.take_background<ReduceShards>().rounds, 5u);
  EXPECT_EQ(lone.miner->report().sealed_heard, 0u);
  reduce.sealed = {{8, 4, digest_of("sealed")}};
  reduce.sealed_heard = 17;
  lone.direct(reduce);
  lone.direct(reduce);  // the answer to a report from before
  const auto fetch = lone.take_background<FetchSealed>();
  EXPECT_EQ(fetch.target, 1u);
  ASSERT_EQ(fetch.results.size(), 1u);
  EXPECT_EQ(fetch.results[0].object, digest_of("sealed"));
  EXPECT_TRUE(lone.background.empty());
  EXPECT_EQ(lone.miner->report().sealed_heard, 17u);
}

TEST(MinerMerge, MomentsGoUpWithTheSnapshotAndComeBackWithTheMerge) {
  core::RunSpec spec = small_spec(1, 1);
  spec.merge.optimizer_moments = core::MergeMoments::kAverage;
  MinerHarness lone(spec, 0);
  lone.start();
  train(lone, 0, 4);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  ASSERT_TRUE(lone.next_job_is<TakeSnapshot>());
  lone.finish_job();
  EXPECT_TRUE(lone.take_background<UploadDelta>().moments);
  core::MergeDirective apply = directive(MergePhase::kApply, 1);
  apply.results = {{0, 4, digest_of("result")}};
  lone.direct(apply);
  lone.take_background<PrepareBase>();
  core::miner_event::BasePrepared prepared;
  prepared.target = 1;
  prepared.base = lone.values();
  prepared.moments = std::make_shared<const core::Moments>();
  lone.step(prepared);
  ASSERT_TRUE(lone.next_job_is<ApplyBase>());
  const auto job = std::get<ApplyBase>(lone.jobs.front());
  EXPECT_EQ(job.moments, prepared.moments);
  EXPECT_FALSE(job.reset_moments);
  EXPECT_EQ(job.moments_age, spec.merge.min_microbatches / spec.training.microbatches_per_step);
}

TEST(MinerMerge, AnUploadThatCouldNotBeReadIsMadeOnceMoreForEachNumber) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  train(lone, 0, 2);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  lone.finish_job();
  const auto first = lone.take_background<UploadDelta>();
  EXPECT_EQ(first.again, 0u);
  core::miner_event::DeltaUploaded uploaded;
  uploaded.commit = {1, digest_of("delta"), first.snapshot_step, first.snapshot_version};
  uploaded.commit.whole = true;
  lone.step(uploaded);
  ASSERT_TRUE(lone.miner->report().upload);
  core::MergeDirective again = directive(MergePhase::kSnapshot, 1);
  again.again = 3;
  lone.direct(again);
  EXPECT_FALSE(lone.miner->report().upload);
  lone.step(uploaded);  // of the first one, late
  EXPECT_FALSE(lone.miner->report().upload);
  ASSERT_TRUE(lone.next_job_is<TakeSnapshot>());
  lone.finish_job();
  EXPECT_EQ(lone.take_background<UploadDelta>().again, 3u);
  uploaded.commit.again = 3;
  lone.step(uploaded);
  EXPECT_EQ(lone.miner->report().upload->again, 3u);
  lone.direct(again);
  EXPECT_TRUE(lone.jobs.empty() && lone.background.empty());
}

TEST(MinerMerge, ResultsThatNobodyHasAreToldAndNotFetchedAgainUntilThereAreOthers) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  core::MergeDirective apply_it = directive(MergePhase::kApply, 1);
  apply_it.results = {{0, 4, digest_of("a lie"), {}}, {4, 4, digest_of("right"), {}}};
  lone.direct(apply_it);
  lone.take_background<PrepareBase>();
  core::miner_event::BasePrepared failed;
  failed.target = 1;
  failed.ok = false;
  failed.unreadable = {0};
  lone.step(failed);
  EXPECT_TRUE(lone.miner->report_is_urgent());
  ASSERT_EQ(lone.miner->report().unreadable_results.size(), 1u);
  EXPECT_EQ(lone.miner->report().unreadable_results[0].target, 1u);
  EXPECT_EQ(lone.miner->report().unreadable_results[0].first_block, 0u);
  for (int i = 0; i < 10; ++i) lone.direct(apply_it);
  EXPECT_TRUE(lone.background.empty());
  apply_it.results[0].result = digest_of("what the uploads give");
  lone.direct(apply_it);
  EXPECT_EQ(lone.take_background<PrepareBase>().results[0].result, digest_of("what the uploads give"));
  lone.step(failed);
  for (int i = 0; i < 64; ++i) lone.direct(apply_it);  // in the end it looks again by itself
  EXPECT_EQ(lone.background.size(), 1u);
}

TEST(MinerMerge, AFailedUploadOrPreparationIsTriedAgain) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  lone.direct(directive(MergePhase::kSnapshot, 1));
  lone.finish_job();
  lone.take_background<UploadDelta>();
  core::miner_event::DeltaUploaded uploaded;
  uploaded.commit.target = 1;
  uploaded.ok = false;
  uploaded.why = "no route";
  lone.step(uploaded);
  EXPECT_FALSE(lone.miner->report().upload);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  EXPECT_TRUE(lone.next_job_is<TakeSnapshot>());
  lone.finish_job();
  lone.take_background<UploadDelta>();
  lone.direct(directive(MergePhase::kApply, 1));
  lone.take_background<PrepareBase>();
  core::miner_event::BasePrepared prepared;
  prepared.target = 1;
  prepared.ok = false;
  prepared.why = "not there yet";
  lone.step(prepared);
  EXPECT_TRUE(lone.jobs.empty());
  apply(lone, 1, false);
  EXPECT_EQ(lone.miner->report().status.epoch, 1u);
}

TEST(MinerMerge, DirectivesOfAnotherEpochAreIgnored) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  for (const MergePhase phase : {MergePhase::kSnapshot, MergePhase::kReduce, MergePhase::kApply}) {
    lone.direct(directive(phase, 0));
    lone.direct(directive(phase, 2));
  }
  EXPECT_TRUE(lone.jobs.empty());
  EXPECT_TRUE(lone.background.empty());
}

TEST(MinerMerge, AnUploadWaitsForTheReceiptsThatWeighIt) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  train(lone, 0, static_cast<int>(core::kMaxReceiptsPerSync) + 1);
  lone.direct(directive(MergePhase::kSnapshot, 1));
  lone.finish_job();
  lone.take_background<UploadDelta>();
  core::miner_event::DeltaUploaded uploaded;
  uploaded.commit.target = 1;
  lone.step(uploaded);
  EXPECT_EQ(lone.miner->report().receipts.size(), core::kMaxReceiptsPerSync);
  EXPECT_FALSE(lone.miner->report().upload);
  EXPECT_TRUE(lone.miner->report_is_urgent());
  core::SyncAnswer answer = lone.empty_answer();
  answer.receipts_acknowledged = 1;
  lone.answer(answer);
  EXPECT_TRUE(lone.miner->report().upload);
}

TEST(MinerPublishing, IsDoneOnceAnEpoch) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  core::SyncAnswer please = lone.empty_answer();
  please.publish_state = true;
  lone.answer(please);
  lone.answer(please);
  EXPECT_EQ(lone.take_background<PutOutState>().epoch, 0u);
  EXPECT_TRUE(lone.background.empty());
  lone.step(core::miner_event::StatePutOut{0, Digest{}, false, "no route"});
  EXPECT_FALSE(lone.miner->report().published_state);
  lone.answer(please);
  lone.take_background<PutOutState>();
  lone.step(core::miner_event::StatePutOut{0, digest_of("seed"), true, ""});
  EXPECT_EQ(lone.miner->report().published_state, digest_of("seed"));
  lone.answer(please);
  EXPECT_TRUE(lone.background.empty());
  apply(lone, 1, false);
  EXPECT_FALSE(lone.miner->report().published_state);
  lone.answer(please);
  EXPECT_EQ(lone.take_background<PutOutState>().epoch, 1u);
}

TEST(MinerCheckpoint, ExportsUploadsAndReports) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  train(lone, 0, 3);
  core::SyncAnswer please = lone.empty_answer();
  please.checkpoint = 4;
  lone.answer(please);
  ASSERT_TRUE(lone.next_job_is<ExportLocalState>());
  lone.finish_job();
  lone.answer(please);
  EXPECT_TRUE(lone.jobs.empty());
  EXPECT_EQ(lone.take_background<UploadLocalState>().id, 4u);
  EXPECT_FALSE(lone.miner->report().checkpoint);
  lone.step(core::miner_event::LocalStateUploaded{4, Digest{}, false, "no route"});
  lone.answer(please);
  lone.finish_job();  // tried again
  lone.take_background<UploadLocalState>();
  lone.step(core::miner_event::LocalStateUploaded{4, digest_of("own"), true, ""});
  const core::CheckpointCommit commit = *lone.miner->report().checkpoint;
  EXPECT_EQ(commit.id, 4u);
  EXPECT_EQ(commit.object, digest_of("own"));
  EXPECT_EQ(commit.local_steps, 1u);
  EXPECT_EQ(commit.accumulated, 1u);
  lone.answer(please);
  EXPECT_TRUE(lone.jobs.empty());
  lone.answer(lone.empty_answer());
  EXPECT_FALSE(lone.miner->report().checkpoint);
}

TEST(MinerLeaving, EndsWithTheRun) {
  MinerHarness lone(small_spec(1, 1), 0);
  lone.start();
  core::SyncAnswer answer = lone.empty_answer();
  answer.phase = core::RunPhase::kFinished;
  answer.leave = true;
  lone.answer(answer);
  EXPECT_EQ(lone.left, "the run is finished");
}

}  // namespace
}  // namespace tessera::test
