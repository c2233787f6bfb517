// The microbatches of a ledger that CLASP may use: their pathway was proposed at random, which is published when it can do no
// harm any more (RandomLeasesPublished), and they went their way without a repair. Used is the pathway that happened. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "tessera/core/ledger_entry.h"

namespace tessera::core {

struct ClaspSample {
  MicrobatchId microbatch = 0;
  std::vector<MinerIndex> pathway;
  double loss = 0;
  double time_s = 0;  // when the tail's receipt came
};

struct ClaspSampleCounts {
  uint64_t published = 0;   // random pathways
  uint64_t repaired = 0;    // of them not used: another miner took over somewhere
  uint64_t incomplete = 0;  // not used: the receipts do not make one unbroken pathway
  uint64_t rerouted = 0;    // used, though a miner on the way was another than proposed
};

class ClaspSamples {
 public:
  // Microbatches remembered until it is published whether they were random.
  static constexpr size_t kMaxPending = 1u << 18;

  // What the entry completes, in the order of the publication.
  std::vector<ClaspSample> read(const LedgerEntry& entry);
  const ClaspSampleCounts& counts() const { return counts_; }

 private:
  struct Hop {
    MinerIndex miner = kNoMiner;
    MinerIndex upstream = kNoMiner;
    MinerIndex downstream = kNoMiner;
  };
  struct Pending {
    std::vector<Hop> hops;   // by stage
    bool repaired = false;
    bool doubled = false;    // two miners of a stage have a receipt of this attempt
    double loss = 0;
    double time_s = 0;
  };
  using Key = std::pair<MicrobatchId, uint32_t>;  // microbatch, attempt

  void note(const Receipt& receipt, TimeMs time);
  static bool is_complete(const Pending& pending, size_t stages);
  bool sample_of(const RandomLease& lease, ClaspSample* sample);

  ReceiptStreams streams_;
  std::map<Key, Pending> pending_;
  ClaspSampleCounts counts_;
};

}  // namespace tessera::core
