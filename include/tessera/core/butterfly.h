// The butterfly plan: which pair of participants owns which part of the stage.
// N participants have S = N (N - 1) / 2 shards; each unordered pair owns exactly one, so everyone has N - 1 shards and
// every shard has two owners. Which pair has which shard is a secret permutation. N = 1: one shard, one owner.
#pragma once

#include <cstdint>
#include <vector>

namespace tessera::core {

struct PlannedShard {
  uint64_t first_block = 0;
  uint64_t block_count = 0;  // sizes differ by at most one block; may be 0 when there are more shards than blocks
  uint32_t owner_a = 0;      // place in the manifest; owner_a < owner_b unless N = 1
  uint32_t owner_b = 0;
  template <class A>
  void fields(A& a) {
    a("first_block", first_block)("block_count", block_count)("owner_a", owner_a)("owner_b", owner_b);
  }
};

std::vector<PlannedShard> butterfly_plan(uint32_t participants, uint64_t blocks, uint64_t secret_seed);

}  // namespace tessera::core
