// The reduction of one shard of a merge: its owners and, in a dispute, the orchestrator run the same function.
#pragma once

#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/ports/links.h"

namespace tessera::node {

struct ReduceInputs {
  std::vector<core::UploadRef> uploads;  // the manifest, in its order; every one is needed
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  uint32_t block_values = 0;
  uint64_t stage_values = 0;             // of the whole upload
};

// Fetches the uploads' blocks, forms their weighted sum, stores it as an object of blocks and returns its name. An upload
// that is missing or does not fit is an error: never a mean of fewer.
StatusOr<Digest> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs);

// After it failed: the uploads to blame. One that merely could not be fetched now is not.
std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs);

}  // namespace tessera::node
