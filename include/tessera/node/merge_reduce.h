// The reduction of shards of a merge: their owners and, in a dispute, the orchestrator run the same function.
//
// Every block is fetched, measured, reduced and stored by itself, in the order in which uploads come (transfer_order()), so
// the shards of an owner grow together, from whatever part of the uploads is there. In memory are, for each worker, one block
// of every upload as fp32 and kGroupBytes of them as they came; workers are as many as fit kReduceBytes, at most eight.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/messages.h"
#include "tessera/core/run_spec.h"
#include "tessera/kernels/merge_reducer.h"
#include "tessera/ports/links.h"

namespace tessera::node {

inline constexpr uint64_t kReduceBytes = uint64_t{256} << 20;

struct ReduceInputs {
  std::vector<core::UploadRef> uploads;  // the manifest, in its order; every one is needed
  uint64_t stage_values = 0;
  core::MergeSpec merge;
  uint64_t rounding_key = 0;
  uint32_t rounds = 1;   // of transfer_order(), as the uploads come
  bool overlap = false;  // several threads; `blobs` must allow it
  kernels::MergeReducer* device = nullptr;  // for several threads, with the CPU's results; null: the CPU
  // Whether to go on waiting for blocks that are not there, when nothing came for so many milliseconds. Empty: they are
  // missing.
  std::function<bool(int64_t idle_ms)> keep_waiting = {};

  // Of a whole upload, with all its planes.
  uint64_t values() const { return core::merged_values(merge, stage_values); }
  uint64_t blocks() const { return core::merged_blocks(merge, stage_values); }
};

struct Reduction {
  Digest result;  // shard_digest() of the reduced blocks
  Digest object;  // of the copy under the task's token
  std::vector<core::UploadMeasure> measures;
};

// Once for every task, from any of the threads.
using ShardDone = std::function<void(const core::ShardTask& task, StatusOr<Reduction> reduction)>;

// Fetches the uploads' blocks, measures them, forms their mean, puts it on the wire format and stores it under each task's
// token. An upload that is missing or does not fit is an error of every task that is not done: never a mean of fewer.
void reduce_shards(ports::BlobLink& blobs, const ReduceInputs& inputs, const std::vector<core::ShardTask>& tasks,
                   const ShardDone& done);
StatusOr<Reduction> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs, const core::ShardTask& task);

// After it failed: the uploads to blame. One that merely could not be fetched now is not.
std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs, const core::ShardTask& task);

// What owners of a shard must agree on: the digest of the list of its blocks' digests.
Digest shard_digest(const std::vector<Digest>& blocks);

}  // namespace tessera::node
