// The reduction of one shard of a merge: its owners and, in a dispute, the orchestrator run the same function.
//
// Blocks are reduced in pieces, so that memory is bounded whatever the stage and the number of uploads: a piece of every
// upload as fp32 (kReduceBytes together, at least one block of each) and the wire bytes of two pieces.
#pragma once

#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/links.h"

namespace tessera::node {

inline constexpr uint64_t kReduceBytes = uint64_t{64} << 20;

struct ReduceInputs {
  std::vector<core::UploadRef> uploads;  // the manifest, in its order; every one is needed
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  uint64_t stage_values = 0;  // of the whole upload
  core::MergeSpec merge;
  uint64_t rounding_key = 0;
  Digest token;               // of the copy that is stored
  bool overlap = false;       // fetch the next piece on another thread; `blobs` must allow it
};

struct Reduction {
  Digest result;  // of the reduced bytes
  Digest object;  // of the copy under the token
  std::vector<core::UploadMeasure> measures;
};

// Fetches the uploads' blocks, measures them, forms their mean, puts it on the wire format and stores it under the token. An
// upload that is missing or does not fit is an error: never a mean of fewer.
StatusOr<Reduction> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs);

// After it failed: the uploads to blame. One that merely could not be fetched now is not.
std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs);

}  // namespace tessera::node
