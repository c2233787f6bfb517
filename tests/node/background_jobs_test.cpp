// The miner's background jobs without their thread: what a replica's base and carried work become.
#include "tessera/node/background_jobs.h"

#include <gtest/gtest.h>

#include "base/temporary_folder.h"
#include "node/local_checkpoint.h"
#include "support/memory_ports.h"
#include "support/small_run.h"
#include "support/whole_upload.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"
#include "tessera/node/orchestrator_jobs.h"

namespace tessera::node {
namespace {

const std::string kRun = "0123456789abcdef";

// A process that dies after its upload is in the manifest: what its next process finds on the disk is in the mean already,
// and must not be carried over the merge as if it were new, nor uploaded a second time.
TEST(BackgroundJobs, WhatARestartedParticipantRecoversCountsOnce) {
  const core::RunSpec spec = test::small_spec(1, 1);
  const uint64_t count = core::stage_value_count(spec, 0);
  const std::vector<float> base(count, 1.0f), momentum(count, 0.0f), masters(count, 0.75f);
  test::TemporaryFolder folder;
  test::MemoryBlobs blobs;
  core::Assignment assignment;
  assignment.epoch = 4;
  assignment.state = *put_object(blobs, encode_stage_state(base, momentum));
  const core::LocalState saved{.masters = masters, .first_moment = momentum, .second_moment = momentum,
                               .residual = std::vector<float>(count, 0.5f)};
  ASSERT_TRUE(save_local_checkpoint(folder.path(), {.run_id = kRun, .epoch = 4, .base = assignment.state}, saved).ok());

  // The merge that the process before gave the same work to.
  const uint64_t blocks = (count + spec.merge.block_values - 1) / spec.merge.block_values;
  const Digest token = digest_of("token");
  const std::vector<core::UploadRef> uploads = {{test::upload_delta(blobs, spec.merge, base, masters, {})->object, 1.0f}};
  const StatusOr<Reduction> mean = reduce_shard(blobs, {.uploads = uploads, .stage_values = count, .merge = spec.merge},
                                                {.block_count = blocks, .token = token});
  ASSERT_TRUE(mean.ok()) << mean.status();

  std::vector<core::MinerEvent> events;
  BackgroundJobs jobs(spec, blobs, folder.path(), kRun, [&](core::MinerEvent event) { events.push_back(std::move(event)); });
  core::BackgroundJob fetch = core::miner_effect::FetchState{assignment};
  jobs.run(fetch);
  const auto fetched = std::get<core::miner_event::StateFetched>(events.back());
  ASSERT_TRUE(fetched.local_state) << fetched.why;
  ASSERT_EQ(fetched.local_state->masters, masters);

  core::BackgroundJob prepare = core::miner_effect::PrepareBase{
      .target = 5, .uploads = uploads, .results = {{0, blocks, mean->result, {{mean->object, token}}}}, .participant = true,
      .outer_learning_rate = 1, .outer_momentum = 0};
  jobs.run(prepare);
  const auto prepared = std::get<core::miner_event::BasePrepared>(events.back());
  ASSERT_TRUE(prepared.ok) << prepared.why;
  ASSERT_TRUE(prepared.reference);
  EXPECT_EQ(*prepared.reference, masters);  // only steps since the restart are carried over

  // In a dispute the orchestrator comes to the same state by itself.
  test::MemoryCheckpoints checkpoints;
  OrchestratorJobs disputes(blobs, checkpoints, nullptr, nullptr);
  core::RemakeState wanted{.stage_values = count, .merge = spec.merge};
  wanted.past = {.target = 5, .from = assignment.state, .uploads = uploads,
                 .results = {{0, blocks, mean->result, {{mean->object, token}}}}, .outer_learning_rate = 1};
  const core::Event remade = std::get<core::Event>(*disputes.run(OrchestratorJob(wanted)));
  EXPECT_EQ(std::get<core::StateRemade>(remade).state, prepared.state);
  EXPECT_TRUE(check_object(blobs, prepared.state, 2 * count * sizeof(float)).ok());
  wanted.past.from = digest_of("gone");
  EXPECT_TRUE(std::get<core::StateRemade>(std::get<core::Event>(*disputes.run(OrchestratorJob(wanted)))).state.is_zero());

  core::BackgroundJob store = core::miner_effect::UploadLocalState{1, std::make_shared<const core::LocalState>(saved)};
  jobs.run(store);
  const auto stored = std::get<core::miner_event::LocalStateUploaded>(events.back());
  EXPECT_TRUE(get_local_state(blobs, stored.object, count)->residual.empty());
}

}  // namespace
}  // namespace tessera::node
