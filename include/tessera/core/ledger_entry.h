// What readers of a ledger share: its entries as events, and which receipts in them are news. Pure; entries come in order.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/core/events.h"

namespace tessera::core {

struct LedgerEntry {
  uint64_t sequence = 0;
  TimeMs time = 0;
  Event event;
};

// A miner's receipts are numbered without gaps within its process; what was seen already, and what is ahead of a gap, counts
// for nothing (it is repeated), as in the orchestrator's own count.
class ReceiptStreams {
 public:
  // Those of the entry that are news, in order.
  std::vector<Receipt> news_in(const ReceiptsArrived& arrived);

 private:
  struct Stream {
    uint64_t incarnation = 0;
    uint64_t through = 0;
  };
  std::map<MinerIndex, Stream> streams_;
};

// What the run's specification says of receipts: what is beyond it is of no work of the run.
class RunBounds {
 public:
  void read(const Event& event);
  bool contain(const Receipt& receipt) const { return receipt.stage < stages_ && receipt.microbatch < total_microbatches_; }
  uint32_t stages() const { return stages_; }  // at most 64

 private:
  uint32_t stages_ = 0;
  uint64_t total_microbatches_ = 0;
};

// The epochs that miners are at, by the states they reported to hold: a receipt's own word on its epoch proves nothing.
class HeldEpochs {
 public:
  void read(const Event& event);
  // Of its stage; 0 before it held any state.
  Epoch of(MinerIndex miner) const;

 private:
  std::map<MinerIndex, Epoch> epochs_;
};

// Miners' keys by their numbers, which are given in the order of first registrations.
class MinerKeys {
 public:
  void read(const Event& event);
  const std::vector<NodeId>& keys() const { return keys_; }

 private:
  std::map<NodeId, MinerIndex> known_;
  std::vector<NodeId> keys_;
};

}  // namespace tessera::core
