// What comes of a merge: results that a replica can't have, and the picture that people get.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "node/merge_views.h"
#include "support/memory_ports.h"
#include "support/whole_upload.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/orchestrator_jobs.h"

namespace tessera::node {
namespace {

constexpr uint32_t kBlock = 256;
constexpr uint64_t kValues = 4 * kBlock;

class MergeResult : public testing::Test {
 protected:
  MergeResult() {
    merge.block_values = kBlock;
    for (const float value : {1.0f, 3.0f}) {
      const std::vector<float> base(kValues, value), zeros(kValues, 0.0f);
      uploads.push_back({test::upload_delta(blobs, merge, base, zeros, {})->object, 0.5f});
    }
  }
  ReduceInputs inputs() const { return {.uploads = uploads, .stage_values = kValues, .merge = merge, .rounding_key = 5}; }
  core::ShardResult shard(uint64_t first, uint64_t count) {
    const Digest token = digest_of("token");
    const auto made = reduce_shard(blobs, inputs(), {.first_block = first, .block_count = count, .token = token});
    return {first, count, made->result, {{made->object, token}}};
  }
  core::ResultRechecked recheck(const core::ShardResult& result) {
    OrchestratorJobs jobs(blobs, checkpoints, {}, {});
    const auto done = jobs.run(core::RecheckResult{
        .stage = 0, .target = 1, .result = result, .uploads = uploads, .stage_values = kValues, .merge = merge, .rounding_key = 5});
    return std::get<core::ResultRechecked>(std::get<core::Event>(*done));
  }

  core::MergeSpec merge;
  test::MemoryBlobs blobs;
  test::MemoryCheckpoints checkpoints;
  std::vector<core::UploadRef> uploads;
};

TEST_F(MergeResult, WhatWasFetchedAheadIsNotFetchedAgain) {
  const std::vector<core::ShardResult> results = {shard(0, 1), shard(1, 3)};
  KeptBlobs link(blobs);
  link.begin(1 << 20);
  auto prefetch = std::make_unique<ResultPrefetch>(link, merge, kValues);
  prefetch->add({{9, 1, results[0].copies[0].object}, {0, 1, digest_of("gone")}, {0, 2, results[0].copies[0].object}});  // all wrong
  for (const core::ShardResult& result : results) {
    prefetch->add({{result.first_block, result.block_count, result.copies[0].object}});
  }
  std::vector<Digest> wanted;
  for (const core::ShardResult& result : results) {
    const auto list = core::ObjectManifest::decode(blobs.get({result.copies[0].object})->at(0));
    wanted.insert(wanted.end(), list->chunks.begin(), list->chunks.end());
  }
  while (!std::all_of(wanted.begin(), wanted.end(), [&](const Digest& name) { return link.has(name); })) std::this_thread::yield();
  prefetch.reset();
  KeptBlobs plain(blobs);
  const auto fetched = fetch_mean(plain, merge, kValues, results);
  for (const Digest& name : wanted) blobs.forget(name);
  const auto mean = fetch_mean(link, merge, kValues, results);
  ASSERT_TRUE(mean.ok()) << mean.status();
  EXPECT_EQ(*mean, *fetched);
}

TEST_F(MergeResult, AllThatNobodyHasAreToldAtOnce) {
  std::vector<core::ShardResult> results = {shard(0, 1), shard(1, 1), shard(2, 1), shard(3, 1)};
  results[1].result = digest_of("a lie");
  results[3].result = digest_of("another");
  results[2].copies = {{digest_of("gone"), digest_of("token")}};  // can be made from the uploads
  KeptBlobs link(blobs);
  const RemakeShard remake = [&](const core::ShardResult& result) -> StatusOr<core::ResultCopy> {
    const core::ShardTask task{.first_block = result.first_block, .block_count = result.block_count, .token = digest_of("mine")};
    TESSERA_ASSIGN_OR_RETURN(const Reduction made, reduce_shard(link, inputs(), task));
    return core::ResultCopy{made.object, digest_of("mine")};
  };
  for (const size_t threads : {1u, 3u}) {
    std::vector<uint64_t> unreadable;
    EXPECT_TRUE(absl::IsDataLoss(fetch_mean(link, merge, kValues, results, remake, threads, &unreadable).status()));
    std::sort(unreadable.begin(), unreadable.end());
    EXPECT_EQ(unreadable, (std::vector<uint64_t>{1, 3}));
  }
  results[1] = shard(1, 1);
  results[3] = shard(3, 1);
  std::vector<uint64_t> unreadable;
  EXPECT_TRUE(fetch_mean(link, merge, kValues, results, remake, 1, &unreadable).ok());
  EXPECT_TRUE(unreadable.empty());
}

TEST_F(MergeResult, TheOrchestratorLooksAtTheCopiesAndElseMakesIt) {
  const core::ShardResult honest = shard(1, 2);
  EXPECT_TRUE(recheck(honest).readable);
  core::ShardResult lie = honest;
  lie.result = digest_of("a lie");
  const core::ResultRechecked made = recheck(lie);
  EXPECT_FALSE(made.readable);
  EXPECT_EQ(made.result, honest.result);
  EXPECT_TRUE(check_result(blobs, merge, kValues, {1, 2, made.result, {made.copy}}).ok());
  uploads[1].object = digest_of("an upload that is gone");
  const core::ResultRechecked failed = recheck(lie);
  EXPECT_TRUE(failed.result.is_zero());
  EXPECT_FALSE(failed.why.empty());
}

TEST(MergesView, ADeviatingMinerIsARowThatDiffers) {
  using core::OwnerOutcome;
  core::OrchestratorState state;
  state.stages.resize(2);
  core::MergeRecord record{.target = 7, .participants = {4, 5, 9}, .counts = {1, 2, 3}, .norms = {1, 1, 2}, .cosines = {0.5, 0.5, 0.1}};
  record.shards = {{0, 1, OwnerOutcome::kRight, OwnerOutcome::kRight, false, false},
                   {0, 2, OwnerOutcome::kMissing, OwnerOutcome::kWrong, true, true},
                   {1, 2, OwnerOutcome::kUnavailable, OwnerOutcome::kWrong, false, true}};
  state.stages[1].merge_records.push_back(record);
  state.stages[1].merge_verdicts.push_back({.target = 7, .miner = 9, .fault = core::MergeFault::kWrongReduction, .shard = 3});
  state.stages[1].merge_verdicts.push_back({.target = 6, .miner = 4});
  const auto view = nlohmann::json::parse(*merges_view(state, "1/7"));
  EXPECT_EQ(view["matrix"], (std::vector<std::string>{".=-", "=.u", "XX."}));
  EXPECT_EQ(view["recomputed"], 2);
  ASSERT_EQ(view["verdicts"].size(), 1u);
  EXPECT_EQ(view["verdicts"][0]["miner"], 9);
  EXPECT_EQ(view["verdicts"][0]["fault"], "wrong reduction");
  EXPECT_TRUE(absl::IsNotFound(merges_view(state, "0/7").status()));
  EXPECT_TRUE(nlohmann::json::parse(*merges_view(state, ""))[0]["matrix"].empty());
}

}  // namespace
}  // namespace tessera::node
