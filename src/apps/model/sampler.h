// Picks the next token from logits. The same seed and the same logits give the same tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/base/prng.h"
#include "tessera/base/status.h"

namespace tessera::apps {

class Sampler {
 public:
  // Only ids below `vocab` are picked. `temperature` 0: always the likeliest (of equals the
  // smallest id). `top_k`: only among so many likeliest; 0: among all.
  Sampler(uint32_t vocab, double temperature, uint32_t top_k, uint64_t seed)
      : vocab_(vocab), temperature_(temperature), top_k_(top_k), prng_(seed) {}

  // DATA_LOSS if the logits are not numbers.
  StatusOr<uint32_t> pick(const std::vector<float>& logits);

 private:
  const uint32_t vocab_;
  const double temperature_;
  const uint32_t top_k_;
  Prng prng_;
};

}  // namespace tessera::apps
