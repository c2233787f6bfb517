// The butterfly plan: which pair of participants owns which part of the stage.
// N participants have S = N (N - 1) / 2 shards; each unordered pair owns exactly one, so everyone has N - 1 shards and
// every shard has two owners. Which pair has which shard is a secret of the seed. N = 1: one shard, one owner.
//
// The shards follow each other in rounds: in each, everyone has one shard at most, and none with N even. So uploads that go up
// round by round give every owner something to do from the first moment to the last, and whole shards from early on. (The rounds
// of a tournament, by the circle method of Kirkman 1847.) Labels, rounds, and shards within a round are drawn: to one participant
// any shard that is not its own is as likely to be any pair's of the others.
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

// Rounds of a plan; they divide its blocks evenly, give or take the one block by which shards differ.
uint32_t butterfly_rounds(uint32_t participants);

std::vector<PlannedShard> butterfly_plan(uint32_t participants, uint64_t blocks, uint64_t secret_seed);

}  // namespace tessera::core
