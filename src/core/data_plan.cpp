#include "tessera/core/data_plan.h"

#include <bit>

#include "tessera/base/prng.h"

namespace tessera::core {
namespace {

constexpr int kFeistelRounds = 4;

uint64_t windows_in(const TokenShard& shard, uint32_t context) {
  return shard.tokens == 0 ? 0 : (shard.tokens - 1) / context;
}

// Every pass over the data gets an order of its own.
uint64_t seed_of_pass(uint64_t seed, uint64_t pass) { return mix64(seed ^ mix64(pass)); }

// Window number `window` (below window_count) as a place in a shard.
Window locate(const std::vector<TokenShard>& shards, uint32_t context, uint64_t window) {
  for (uint32_t shard = 0; shard < shards.size(); ++shard) {
    const uint64_t windows = windows_in(shards[shard], context);
    if (window < windows) return {.shard = shard, .first_token = window * context};
    window -= windows;
  }
  TESSERA_CHECK(false);
  return {};
}

}  // namespace

uint64_t window_count(const std::vector<TokenShard>& shards, uint32_t context) {
  TESSERA_CHECK(context > 0);
  uint64_t count = 0;
  for (const TokenShard& shard : shards) count += windows_in(shard, context);
  return count;
}

std::vector<Window> windows_of(const std::vector<TokenShard>& shards, uint32_t context,
                               uint64_t seed, MicrobatchId microbatch, uint32_t microbatch_size) {
  const uint64_t count = window_count(shards, context);
  TESSERA_CHECK(count > 0);
  std::vector<Window> windows;
  windows.reserve(microbatch_size);
  for (uint32_t row = 0; row < microbatch_size; ++row) {
    const uint64_t sequence = microbatch * microbatch_size + row;
    const uint64_t pass = sequence / count;
    windows.push_back(
        locate(shards, context, permute(sequence % count, count, seed_of_pass(seed, pass))));
  }
  return windows;
}

// The network permutes [0, 4^half_bits), the smallest such range that holds `size` numbers. An
// image outside [0, size) is permuted again until it is inside ("cycle walking", Black and Rogaway
// 2002): the walk follows one cycle of the big permutation, which returns to its start, so it ends,
// and two starts never end at the same number. The range is below 4 * size, so a walk takes fewer
// than four turns on average.
uint64_t permute(uint64_t index, uint64_t size, uint64_t seed) {
  TESSERA_CHECK(index < size);
  const int bits = size > 1 ? std::bit_width(size - 1) : 1;
  const int half_bits = (bits + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t keys[kFeistelRounds];
  Prng stream(seed);
  for (uint64_t& key : keys) key = stream.next();
  do {
    uint64_t left = index >> half_bits;
    uint64_t right = index & mask;
    for (const uint64_t key : keys) {
      const uint64_t next = left ^ (mix64(right ^ key) & mask);
      left = right;
      right = next;
    }
    index = (left << half_bits) | right;
  } while (index >= size);
  return index;
}

}  // namespace tessera::core
