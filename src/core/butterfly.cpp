#include "tessera/core/butterfly.h"

#include "tessera/base/prng.h"
#include "tessera/base/status.h"

namespace tessera::core {

std::vector<PlannedShard> butterfly_plan(uint32_t participants, uint64_t blocks,
                                         uint64_t secret_seed) {
  TESSERA_CHECK(participants >= 1);
  if (participants == 1) return {{.first_block = 0, .block_count = blocks, .owner_a = 0, .owner_b = 0}};

  std::vector<PlannedShard> shards;
  for (uint32_t a = 0; a < participants; ++a) {
    for (uint32_t b = a + 1; b < participants; ++b) {
      shards.push_back({.first_block = 0, .block_count = 0, .owner_a = a, .owner_b = b});
    }
  }
  Prng(secret_seed).shuffle(shards);
  const uint64_t smaller = blocks / shards.size();
  const uint64_t larger_count = blocks % shards.size();
  uint64_t first = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].first_block = first;
    shards[i].block_count = smaller + (i < larger_count ? 1 : 0);
    first += shards[i].block_count;
  }
  return shards;
}

}  // namespace tessera::core
