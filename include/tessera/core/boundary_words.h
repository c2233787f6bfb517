// What the receipts of one open microbatch say of its boundaries, until each stage has a gradient that both neighbours
// confirm, in one attempt, by the rule of core/receipt_pair.h. A miner's own word counts nothing for it.
//
// Not thread-safe: part of the orchestrator's state.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tessera/core/messages.h"

namespace tessera::core {

// A gradient that counts in a merge.
struct ConfirmedGradient {
  MinerIndex miner = kNoMiner;
  uint64_t incarnation = 0;
  uint64_t local_step = 0;
};

class BoundaryWords {
 public:
  // Takes a receipt of one of `stages` stages into account. Returns the gradients, of any stage, that are confirmed by it and
  // are the first confirmed ones of their stage. A miner's first word on an attempt binds; words beyond 4 · stages + 8 are
  // not kept.
  std::vector<ConfirmedGradient> add(const Receipt& receipt, uint32_t stages);

  template <class A>
  void fields(A& a) {
    a("words", words_)("confirmed_stages", confirmed_stages_);
  }

 private:
  // Of hashes the first eight bytes: who does not know one can't guess them either.
  struct Side {
    MinerIndex neighbour = kNoMiner;
    uint64_t forward = 0;   // of the activation
    uint64_t backward = 0;  // of the gradient
    template <class A>
    void fields(A& a) {
      a("neighbour", neighbour)("forward", forward)("backward", backward);
    }
  };
  struct Word {
    StageIndex stage = 0;
    uint32_t attempt = 0;
    MinerIndex miner = kNoMiner;
    uint64_t incarnation = 0;
    uint64_t local_step = 0;
    bool accumulated = false;
    bool repaired = false;
    Side below;
    Side above;
    template <class A>
    void fields(A& a) {
      a("stage", stage)("attempt", attempt)("miner", miner)("incarnation", incarnation)("local_step", local_step)(
          "accumulated", accumulated)("repaired", repaired)("below", below)("above", above);
    }
  };

  static bool confirm(const Word& below, const Word& above);
  bool is_confirmed(const Word& word, uint32_t stages) const;

  std::vector<Word> words_;
  uint64_t confirmed_stages_ = 0;
};

}  // namespace tessera::core
