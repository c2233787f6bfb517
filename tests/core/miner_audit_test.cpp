// Commitments of a miner: when, what they say, and that training does not wait for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {
namespace {

using core::SegmentCommit;
using core::miner_effect::ExportSegment;
using core::miner_effect::StoreSegment;

core::RunSpec audited_spec(uint32_t segment_steps) {
  core::RunSpec spec = small_spec(1, 1);
  spec.training.microbatches_per_step = 2;
  spec.audit.enabled = true;
  spec.audit.segment_steps = segment_steps;
  return spec;
}

void train(MinerHarness& lone, MicrobatchId id) {
  lone.lease(id);
  lone.tokens_read();
  while (!lone.jobs.empty()) lone.finish_job();
}

void started(MinerHarness& lone) {
  lone.start();
  ASSERT_TRUE(lone.next_job_is<ExportSegment>());  // before it does anything else
  lone.finish_job();
}

SegmentCommit stored(MinerHarness& lone) {
  StoreSegment segment = lone.take_background<StoreSegment>();
  segment.commit.state = digest_of("state");
  lone.step(core::miner_event::SegmentStored{segment.commit});
  return segment.commit;
}

void acknowledge(MinerHarness& lone, uint64_t number) {
  core::SyncAnswer answer = lone.empty_answer();
  answer.segment_known = number;
  lone.answer(std::move(answer));
}

TEST(MinerAudit, CommitsToItsStateAtTheBeginAndEverySoManySteps) {
  MinerHarness lone(audited_spec(2), 0);
  started(lone);
  const SegmentCommit first = stored(lone);
  EXPECT_EQ(first.number, 1u);
  EXPECT_EQ(first.first_receipt, 1u);
  EXPECT_EQ(first.local_step, 0u);
  EXPECT_EQ(first.weight_version, 1u);
  ASSERT_TRUE(lone.miner->report().segment);
  EXPECT_TRUE(lone.miner->report_is_urgent() || lone.miner->report().segment->number == 1);
  acknowledge(lone, 1);
  EXPECT_FALSE(lone.miner->report().segment);

  for (MicrobatchId id = 0; id < 4; ++id) train(lone, id);
  const SegmentCommit second = stored(lone);
  EXPECT_EQ(second.number, 2u);
  EXPECT_EQ(second.first_receipt, 5u);
  EXPECT_EQ(second.local_step, 2u);
  EXPECT_EQ(second.schedule_step, 2u);
  EXPECT_EQ(second.weight_version, 3u);
  EXPECT_EQ(second.accumulated, 0u);
  EXPECT_TRUE(second.whole);
  ASSERT_EQ(second.steps.size(), 2u);
  EXPECT_EQ(lone.miner->report().status.segment_copy_us, 3000u);
  for (uint64_t step = 0; step < 2; ++step) {
    EXPECT_EQ(second.steps[step].learning_rate, core::learning_rate_at(lone.spec.training, step));
    EXPECT_EQ(second.steps[step].microbatches, 2u);
    EXPECT_FALSE(second.steps[step].skipped);
  }
}

TEST(MinerAudit, WithoutAuditsThereIsNothing) {
  core::RunSpec spec = audited_spec(1);
  spec.audit.enabled = false;
  MinerHarness lone(spec, 0);
  lone.start();
  for (MicrobatchId id = 0; id < 8; ++id) train(lone, id);
  EXPECT_TRUE(lone.background.empty());
  EXPECT_FALSE(lone.miner->report().segment);
}

TEST(MinerAudit, OneIsUnderWayAtATime) {
  MinerHarness lone(audited_spec(1), 0);
  started(lone);
  const StoreSegment slow = lone.take_background<StoreSegment>();
  for (MicrobatchId id = 0; id < 6; ++id) train(lone, id);  // three steps: training goes on
  EXPECT_TRUE(lone.background.empty());
  lone.step(core::miner_event::SegmentStored{slow.commit});
  EXPECT_TRUE(lone.background.empty());  // not before the orchestrator knows it
  acknowledge(lone, 1);
  while (!lone.jobs.empty()) lone.finish_job();
  const SegmentCommit second = stored(lone);
  EXPECT_EQ(second.number, 2u);
  EXPECT_EQ(second.steps.size(), 3u);  // the segment is longer; nothing is lost
  EXPECT_TRUE(second.whole);
}

TEST(MinerAudit, IsRepeatedUntilItIsKnown) {
  MinerHarness lone(audited_spec(1), 0);
  started(lone);
  stored(lone);
  for (int i = 0; i < 3; ++i) {
    acknowledge(lone, 0);
    ASSERT_TRUE(lone.miner->report().segment);
    EXPECT_EQ(lone.miner->report().segment->number, 1u);
  }
}

void merge(MinerHarness& lone, Epoch target) {
  core::MergeDirective directive;
  directive.target = target;
  directive.phase = core::MergePhase::kApply;
  lone.direct(directive);
  lone.take_background<core::miner_effect::PrepareBase>();
  core::miner_event::BasePrepared prepared;
  prepared.target = target;
  prepared.base = prepared.reference = lone.values();
  prepared.state = digest_of("merged");
  lone.step(prepared);
  ASSERT_TRUE(lone.next_job_is<core::miner_effect::ApplyBase>());
  lone.finish_job();
}

TEST(MinerAudit, AMergeEndsASegmentExactly) {
  MinerHarness lone(audited_spec(100), 0);
  started(lone);
  stored(lone);
  acknowledge(lone, 1);
  for (MicrobatchId id = 0; id < 3; ++id) train(lone, id);
  merge(lone, 1);
  ASSERT_TRUE(lone.next_job_is<ExportSegment>());
  lone.finish_job();
  const SegmentCommit second = stored(lone);
  EXPECT_EQ(second.epoch, 1u);
  EXPECT_EQ(second.accumulated, 1u);  // a partial gradient survives the merge
  EXPECT_EQ(second.steps.size(), 1u);
  EXPECT_EQ(second.first_receipt, 4u);
  EXPECT_TRUE(second.whole);
}

TEST(MinerAudit, AMergeThatComesTooSoonIsSaid) {
  MinerHarness lone(audited_spec(100), 0);
  started(lone);
  StoreSegment slow = lone.take_background<StoreSegment>();  // its first commitment is not known yet
  train(lone, 0);
  merge(lone, 1);
  EXPECT_FALSE(lone.next_job_is<ExportSegment>());
  slow.commit.state = digest_of("state");
  lone.step(core::miner_event::SegmentStored{slow.commit});
  acknowledge(lone, 1);
  while (!lone.jobs.empty()) lone.finish_job();
  EXPECT_FALSE(stored(lone).whole);
  acknowledge(lone, 2);
  EXPECT_TRUE(lone.background.empty());
}

TEST(MinerAudit, AFailedBackwardIsSaid) {
  MinerHarness lone(audited_spec(1), 0);
  started(lone);
  stored(lone);
  acknowledge(lone, 1);
  lone.lease(0);
  lone.tokens_read();
  lone.finish_job();  // forward
  ASSERT_TRUE(lone.next_job_is<core::miner_effect::Backward>());
  lone.jobs.pop_front();
  lone.step(core::miner_event::ComputeFailed{{0, 0}, "out of memory"});
  for (MicrobatchId id = 1; id < 3; ++id) train(lone, id);
  EXPECT_FALSE(stored(lone).whole);
  acknowledge(lone, 2);
  for (MicrobatchId id = 3; id < 5; ++id) train(lone, id);
  EXPECT_TRUE(stored(lone).whole);
}

}  // namespace
}  // namespace tessera::test
