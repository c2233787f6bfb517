// Where a head miner reads token ids from. The product's source fetches shards from the blob store and keeps them on disk
// (src/apps/common/training_data.cpp); tests make ids up.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"

namespace tessera::ports {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  // `count` ids of a training shard from `first`. May block on the network. One thread.
  virtual StatusOr<std::vector<uint32_t>> read(const core::TokenShard& shard, uint64_t first, uint64_t count) = 0;
};

}  // namespace tessera::ports
