// What the receipts on both sides of a boundary say about each other.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/core/messages.h"

namespace tessera::core {

// What one receipt says of a boundary. `Hash`: a digest, or as much of it as is kept.
template <class Hash>
struct BoundarySide {
  MinerIndex miner = kNoMiner;
  MinerIndex neighbour = kNoMiner;  // that it names on the other side
  Hash forward{};                   // of the activation
  Hash backward{};                  // of the gradient
  bool repaired = false;
};

enum class PairWord : uint8_t {
  kConfirms = 0,     // each names the other's miner, and the hashes of activation and boundary gradient are equal; or both say
                     // that they are of repaired work, which is done with other weights on the two sides of the repair
  kSilent = 1,       // they don't name each other
  kContradicts = 2,  // they name each other and signed different hashes
};

// The two sides of one boundary, of the same microbatch and attempt.
template <class Hash>
PairWord judge(const BoundarySide<Hash>& below, const BoundarySide<Hash>& above) {
  if (below.neighbour != above.miner || above.neighbour != below.miner) return PairWord::kSilent;
  const bool same = below.forward == above.forward && below.backward == above.backward;
  return same || (below.repaired && above.repaired) ? PairWord::kConfirms : PairWord::kContradicts;
}

struct PairFinding {
  PairWord word = PairWord::kSilent;
  std::string why;   // empty for what simply confirms
};

// `below` is of the stage before that of `above`; both of the same microbatch and attempt.
PairFinding compare(const Receipt& below, const Receipt& above);

}  // namespace tessera::core
