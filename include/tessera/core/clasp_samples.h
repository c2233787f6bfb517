// The microbatches of a ledger that CLASP may use: their pathway was proposed at random, which is published when it can do no
// harm any more (RandomLeasesPublished), and they went their way without a repair. Used is the pathway that happened, from head
// to tail along receipts that name each other: no receipt of a third party, no repetition and no one-sided word of a repair
// keeps a sample out. Who names neighbours that don't name it does keep its samples out, which shares() shows. Pure; entries
// come in order.
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
  uint64_t repaired = 0;    // of them not used: another miner took over somewhere, as both sides of a boundary say
  uint64_t incomplete = 0;  // not used: the receipts do not make one unbroken pathway
  uint64_t rerouted = 0;    // used, though a miner on the way was another than proposed
};

// Of a miner's random pathways. One that is left out much more often than the others of its stage has something to do with it.
struct ClaspShare {
  uint64_t published = 0;
  uint64_t left_out = 0;
};

class ClaspSamples {
 public:
  // Receipts remembered until it is published whether their microbatches were random.
  static constexpr size_t kMaxPending = 1u << 20;

  explicit ClaspSamples(size_t max_pending = kMaxPending) : max_pending_(max_pending) {}

  // What the entry completes, in the order of the publication.
  std::vector<ClaspSample> read(const LedgerEntry& entry);
  const ClaspSampleCounts& counts() const { return counts_; }
  // By the pathway that happened; by the proposed one if none is known.
  const std::map<MinerIndex, ClaspShare>& shares() const { return shares_; }

 private:
  struct Hop {
    uint64_t arrival = 0;    // ascending
    StageIndex stage = 0;
    MinerIndex miner = kNoMiner;
    MinerIndex upstream = kNoMiner;
    MinerIndex downstream = kNoMiner;
    bool repaired = false;
    double loss = 0;
    double time_s = 0;
  };
  using Hops = std::vector<Hop>;                  // of an attempt, one of each miner and stage
  using Chain = std::vector<const Hop*>;          // by stage
  using Key = std::pair<MicrobatchId, uint32_t>;  // microbatch, attempt

  void note(const Receipt& receipt, TimeMs time);
  void forget_oldest();
  void forget_published(size_t stages);
  static Chain chain_of(const Hops& hops, size_t stages);
  bool sample_of(const RandomLease& lease, ClaspSample* sample);
  void leave_out(const std::vector<MinerIndex>& pathway);

  const size_t max_pending_;
  ReceiptStreams streams_;
  RunBounds bounds_;
  std::map<Key, Hops> pending_;
  size_t pending_hops_ = 0;
  uint64_t arrivals_ = 0;
  ClaspSampleCounts counts_;
  std::map<MinerIndex, ClaspShare> shares_;
};

}  // namespace tessera::core
