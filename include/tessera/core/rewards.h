// What a run's ledger is worth to whom. A miner's pay is linear in its validated work:
//
//   pay * sum over its receipts of  share(outcome) * weight(age)     in epochs without a verdict of fraud
//
//   outcome        share           when
//   full           1               both neighbours' receipts confirm it and its gradient is the first of (stage, microbatch)
//   forward only   forward_share   confirmed, but a neighbour's receipt never came (it died), or another gradient counted
//   contradicted   0               a neighbour's receipt of the same attempt says otherwise
//   unconfirmed    0               neither neighbour's receipt came
//
// Neighbours confirm each other when each names the other and both signed the same hashes for what went over the boundary. Work
// that was repaired is done with other weights on the two sides of the repair: there the two receipts must both say so instead.
// Of a miner's receipts of one attempt the first counts, and only a confirmed gradient can be the first of (stage, microbatch):
// neither repetition nor a receipt for work that never was takes anybody's pay. The epoch is the one that the ledger knows the
// miner in. Pure; entries come in order; memory grows with miners and epochs, not with receipts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tessera/core/ledger_entry.h"

namespace tessera::core {

struct RewardRules {
  double pay = 1;                 // for a full microbatch
  double forward_share = 1.0 / 3; // a forward is about a third of forward and backward
  double window_h = 10;           // weight 1 up to this age, then 0
  double half_life_h = 0;         // > 0: weight 2^(-age / half_life) instead of the window
  double weight(TimeMs age_ms) const;
};

enum class RewardOutcome : uint8_t { kFull = 0, kForwardOnly = 1, kContradicted = 2, kUnconfirmed = 3 };
const char* name_of(RewardOutcome outcome);

// One receipt's part in a reward.
struct RewardedReceipt {
  uint64_t entry = 0;             // of the journal
  TimeMs time = 0;
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  Epoch epoch = 0;                // of the miner's last state_held
  uint64_t sequence = 0;          // the miner's own number of it
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  RewardOutcome outcome = RewardOutcome::kUnconfirmed;
  std::string why;
  bool voided = false;            // by a verdict on its epoch
  double score = 0;               // share * weight; 0 in a voided epoch
};

// A miner's work in one epoch of its stage.
struct RewardEpoch {
  uint64_t full = 0;
  uint64_t forward_only = 0;
  uint64_t contradicted = 0;
  uint64_t unconfirmed = 0;
  uint64_t aged_out = 0;          // of full and forward_only: their weight is 0
  bool voided = false;
  double score = 0;
  double lost_score = 0;          // that the verdict took
};

struct EpochOfMiner {
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  Epoch epoch = 0;
  auto operator<=>(const EpochOfMiner&) const = default;
};

// The epochs that verdicts void, found in a first pass over the ledger: a verdict comes after the work.
class VoidedEpochs {
 public:
  void read(const LedgerEntry& entry);
  // Entry of the verdict, and what it says; nothing if the epoch stands.
  struct Cause {
    uint64_t entry = 0;
    Verdict verdict;
  };
  const Cause* find(const EpochOfMiner& epoch) const;

 private:
  std::map<EpochOfMiner, Cause> causes_;
};

class Rewards {
 public:
  static constexpr size_t kMaxPending = 1u << 16;     // attempts whose receipts are not all there
  static constexpr size_t kMaxUnfinished = 1u << 20;  // microbatches without a gradient of every stage
  static constexpr TimeMs kSettleMs = 900'000;        // receipts that have not come by then don't come

  Rewards(RewardRules rules, TimeMs now, const VoidedEpochs& voided) : rules_(rules), now_(now), voided_(voided) {}

  // The receipts that this entry settles: those of an attempt whose receipts confirm each other from head to tail, or that
  // nothing will be added to.
  std::vector<RewardedReceipt> read(const LedgerEntry& entry);
  // The others, at the ledger's end.
  std::vector<RewardedReceipt> finish();

  const std::map<EpochOfMiner, RewardEpoch>& epochs() const { return epochs_; }
  // By miner; only of those with any receipt.
  std::map<MinerIndex, double> scores() const;

 private:
  struct Hop {
    uint64_t entry = 0;
    TimeMs time = 0;
    Epoch epoch = 0;              // that the miner held when the receipt came
    Receipt receipt;
  };
  struct Attempt {
    std::vector<Hop> hops;        // one of each miner and stage
    TimeMs newest = 0;
  };
  using Key = std::pair<MicrobatchId, uint32_t>;

  void note(const LedgerEntry& entry, const Receipt& receipt);
  bool is_whole(const Attempt& attempt) const;
  bool count(const Receipt& receipt);
  void resumed(const RunResumed& event);
  void settle(const Attempt& attempt, std::vector<RewardedReceipt>* settled);
  void settle_whole(const ReceiptsArrived& arrived, std::vector<RewardedReceipt>* settled);
  void settle_old(TimeMs now, std::vector<RewardedReceipt>* settled);
  RewardedReceipt judge(const Attempt& attempt, const Hop& hop);

  const RewardRules rules_;
  const TimeMs now_;
  const VoidedEpochs& voided_;
  ReceiptStreams streams_;
  RunBounds bounds_;
  HeldEpochs held_;
  std::map<Key, Attempt> pending_;
  std::set<std::pair<TimeMs, Key>> by_age_;
  std::map<MicrobatchId, uint64_t> counted_;  // stages with a gradient, of microbatches that are not complete
  MicrobatchId complete_below_ = 0;           // all of these are complete, or forgotten, unless in counted_
  std::map<EpochOfMiner, RewardEpoch> epochs_;
};

}  // namespace tessera::core
