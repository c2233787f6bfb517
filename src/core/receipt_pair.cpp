#include "tessera/core/receipt_pair.h"

#include <fmt/format.h>

namespace tessera::core {

PairFinding compare(const Receipt& below, const Receipt& above) {
  const BoundarySide<Digest> lower{below.miner, below.downstream, below.output_hash, below.gradient_in_hash, below.repaired};
  const BoundarySide<Digest> upper{above.miner, above.upstream, above.input_hash, above.gradient_out_hash, above.repaired};
  const PairWord word = judge(lower, upper);
  const bool same_forward = lower.forward == upper.forward;
  switch (word) {
    case PairWord::kSilent:
      return {word, fmt::format("miners {} and {} don't name each other", below.miner, above.miner)};
    case PairWord::kConfirms:
      return {word, same_forward && lower.backward == upper.backward ? "" : "repaired on both sides of the boundary"};
    case PairWord::kContradicts:
      break;
  }
  return {word, fmt::format("miners {} and {} signed different {}", below.miner, above.miner,
                            same_forward ? "gradients" : "activations")};
}

}  // namespace tessera::core
