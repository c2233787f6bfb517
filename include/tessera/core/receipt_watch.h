// Finds receipts for work that was not done, from nothing but the receipts themselves. Two things are evidence:
//
//   twice     two receipts of one process say that a gradient of the same microbatch went into its sum. A process keeps count of
//             what it accumulated: no fault of a link or a peer makes it say so twice. One pair is enough.
//   disowned  a microbatch has a clean pathway, one receipt a stage of one attempt, which confirm each other from head to tail
//             and of which none is repaired; another miner of a stage has a receipt for the same attempt that names the
//             pathway's miners before and after it, and these have signed that it was somebody else. An honest miner can be in
//             that place when a neighbour gave its work away without saying so: so it takes kLeastDisowned in one epoch, a share
//             kDisownedShare of its receipts, and more than one pair of neighbours (each pair at most kOfOnePair of them).
//
// Whoever reads the ledger finds the same. What is not settled in the window of the newest kMaxWatched microbatches is never
// evidence, nor is what was repaired, or of another attempt than the clean one. Pure; receipts come in the ledger's order;
// memory is bounded by the window, not by the run, and is not part of the orchestrator's snapshot: a restart only forgets.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/core/messages.h"

namespace tessera::core {

class ReceiptWatch {
 public:
  static constexpr size_t kMaxWatched = 16384;      // microbatches
  static constexpr uint32_t kLeastDisowned = 8;
  static constexpr double kDisownedShare = 0.01;
  static constexpr double kOfOnePair = 0.75;

  struct Finding {
    MinerIndex miner = kNoMiner;
    StageIndex stage = 0;
    Epoch epoch = 0;
    std::string reason;  // the figures, or the two receipts
  };

  // `stages` of the run; `epoch` that the ledger knows the miner in. At most one finding a miner and epoch.
  std::optional<Finding> read(const Receipt& receipt, uint32_t stages, Epoch epoch);
  // Microbatches will be leased again, or stages are others: nothing from before says anything of what comes.
  void forget();

 private:
  struct Accumulated {
    MinerIndex miner = kNoMiner;
    StageIndex stage = 0;
    uint64_t incarnation = 0;
    uint64_t receipt = 0;
  };
  struct Microbatch {
    std::vector<Accumulated> accumulated;
    std::vector<Receipt> hops;         // until the pathway is known
    std::vector<MinerIndex> pathway;   // the clean one; empty: none yet
    uint32_t attempt = 0;              // of the pathway
  };
  struct Miner {
    Epoch epoch = 0;
    uint64_t receipts = 0;             // in this epoch
    uint64_t disowned = 0;
    std::map<std::pair<MinerIndex, MinerIndex>, uint64_t> pairs;  // neighbours that disowned it
    std::optional<Epoch> found_in;
  };

  std::optional<std::string> twice(Microbatch& microbatch, const Receipt& receipt) const;
  std::optional<std::string> disowned(const Microbatch& microbatch, const Receipt& receipt);
  static bool settle(Microbatch& microbatch, const Receipt& receipt, uint32_t stages);

  std::map<MicrobatchId, Microbatch> watched_;
  MicrobatchId watched_from_ = 0;      // what is older has left the window
  std::map<MinerIndex, Miner> miners_;
};

}  // namespace tessera::core
