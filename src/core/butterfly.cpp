#include "tessera/core/butterfly.h"

#include <algorithm>
#include <numeric>

#include "tessera/base/prng.h"
#include "tessera/base/status.h"

namespace tessera::core {

uint32_t butterfly_rounds(uint32_t participants) {
  if (participants <= 1) return 1;
  return participants % 2 == 0 ? participants - 1 : participants;
}

std::vector<PlannedShard> butterfly_plan(uint32_t participants, uint64_t blocks,
                                         uint64_t secret_seed) {
  TESSERA_CHECK(participants >= 1);
  if (participants == 1) return {{.first_block = 0, .block_count = blocks, .owner_a = 0, .owner_b = 0}};

  Prng prng(secret_seed);
  std::vector<uint32_t> labels(participants);
  std::iota(labels.begin(), labels.end(), 0u);
  prng.shuffle(labels);
  const uint32_t rounds = butterfly_rounds(participants);
  std::vector<uint32_t> turns(rounds);
  std::iota(turns.begin(), turns.end(), 0u);
  prng.shuffle(turns);
  std::vector<PlannedShard> shards;
  for (const uint32_t turn : turns) {
    std::vector<PlannedShard> round;
    // The seats rounds + 1 are in a circle but for the last; opposite ones meet. An odd participant out has no partner.
    for (uint32_t i = 0; i <= rounds / 2; ++i) {
      const uint32_t left = i == 0 ? rounds : (turn + i) % rounds;
      const uint32_t right = (turn + rounds - i) % rounds;
      if (left >= participants || right >= participants) continue;
      const auto [a, b] = std::minmax(labels[left], labels[right]);
      round.push_back({.first_block = 0, .block_count = 0, .owner_a = a, .owner_b = b});
    }
    prng.shuffle(round);
    shards.insert(shards.end(), round.begin(), round.end());
  }
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
