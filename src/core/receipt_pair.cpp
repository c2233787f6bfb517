#include "tessera/core/receipt_pair.h"

#include <fmt/format.h>

namespace tessera::core {

PairFinding compare(const Receipt& below, const Receipt& above) {
  const bool named = below.downstream == above.miner && above.upstream == below.miner;
  const bool same_forward = below.output_hash == above.input_hash;
  const bool same_backward = below.gradient_in_hash == above.gradient_out_hash;
  if (!named) return {PairWord::kSilent, fmt::format("miners {} and {} don't name each other", below.miner, above.miner)};
  if (same_forward && same_backward) return {PairWord::kConfirms, ""};
  if (below.repaired && above.repaired) return {PairWord::kConfirms, "repaired on both sides of the boundary"};
  return {PairWord::kContradicts, fmt::format("miners {} and {} signed different {}", below.miner, above.miner,
                                              same_forward ? "gradients" : "activations")};
}

}  // namespace tessera::core
