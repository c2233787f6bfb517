// Everything a ledger says about one microbatch: leases, attempts, each hop's receipt with what became of it, the merges that
// took its gradients in, verdicts on the epochs it is part of. Pure; entries come in order.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tessera/core/ledger_entry.h"
#include "tessera/core/orchestrator.h"
#include "tessera/core/rewards.h"

namespace tessera::core {

struct TracedLease {
  uint64_t entry = 0;
  TimeMs unix_ms = 0;
  uint32_t attempt = 0;
  MinerIndex head = kNoMiner;
  std::vector<MinerIndex> pathway;  // as proposed
  bool random_pathway = false;
  bool repair = false;              // another head goes on with the attempt
  TimeMs deadline_unix_ms = 0;
  template <class A>
  void fields(A& a) {
    a("entry", entry)("unix_ms", unix_ms)("attempt", attempt)("head", head)("pathway", pathway)(
        "random_pathway", random_pathway)("repair", repair)("deadline_unix_ms", deadline_unix_ms);
  }
};

struct TracedHop {
  uint64_t entry = 0;
  TimeMs unix_ms = 0;               // when the receipt was journalled
  NodeId node;
  Epoch epoch = 0;                  // of the miner's last state_held
  Receipt receipt;
  std::string outcome;              // as in rewards
  std::string why;
  bool voided = false;
  template <class A>
  void fields(A& a) {
    a("entry", entry)("unix_ms", unix_ms)("node", node)("epoch", epoch)("outcome", outcome)("why", why)("voided", voided)(
        "receipt", receipt);
  }
};

struct TracedMerge {
  StageIndex stage = 0;
  Epoch target = 0;                 // the epoch it led to
  uint64_t entry = 0;
  TimeMs unix_ms = 0;
  template <class A>
  void fields(A& a) {
    a("stage", stage)("target", target)("entry", entry)("unix_ms", unix_ms);
  }
};

struct TracedVerdict {
  uint64_t entry = 0;
  TimeMs unix_ms = 0;
  std::string about;
  Verdict verdict;
  template <class A>
  void fields(A& a) {
    a("entry", entry)("unix_ms", unix_ms)("about", about)("verdict", verdict);
  }
};

struct TracedMicrobatch {
  MicrobatchId microbatch = 0;
  uint32_t stages = 0;
  bool complete = false;            // every stage has a counted gradient
  std::optional<double> loss;       // at the tail, of the counted gradient
  bool leases_known = false;        // false: the public view, in which only random pathways are published
  std::vector<TracedLease> leases;
  std::vector<TracedHop> hops;      // by attempt, stage, time
  std::vector<TracedMerge> merges;
  std::vector<TracedVerdict> verdicts;
  template <class A>
  void fields(A& a) {
    a("microbatch", microbatch)("stages", stages)("complete", complete)("loss", loss)("leases_known", leases_known)(
        "leases", leases)("hops", hops)("merges", merges)("verdicts", verdicts);
  }
};

class MicrobatchTrace {
 public:
  // With `replays` the run is replayed beside the reading: leases are known then. That needs the run's secret in RunCreated.
  MicrobatchTrace(MicrobatchId microbatch, bool replays);

  void read(const LedgerEntry& entry);
  TracedMicrobatch finish();

 private:
  void watch_lease(const LedgerEntry& entry);
  void take(const std::vector<RewardedReceipt>& settled);
  void note_merge(const LedgerEntry& entry, const PairingsPublished& paired);
  const TracedMerge* merge_of(const TracedHop& hop) const;

  TracedMicrobatch trace_;
  std::unique_ptr<Orchestrator> replay_;
  ReceiptStreams streams_;
  HeldEpochs held_;
  MinerKeys keys_;
  VoidedEpochs no_voided_epochs_;   // verdicts come later than receipts: finish() marks what they void
  Rewards rewards_;
  struct Upload {
    uint64_t entry = 0;
    Epoch target = 0;
    uint64_t snapshot_step = 0;
  };
  std::map<MinerIndex, std::vector<Upload>> uploads_;
  struct Merge {
    TracedMerge traced;
    uint64_t begun_after = 0;       // entry of the last resume before it
    std::set<MinerIndex> owners;    // of the hops' miners those that own a shard of it: their uploads are in its manifest
  };
  std::map<std::pair<StageIndex, Epoch>, std::vector<Merge>> merges_;  // complete ones; again after a resume
  uint64_t resumed_ = 0;            // entry of the last resume
  std::vector<TracedVerdict> verdicts_;
  VoidedEpochs voided_;
};

}  // namespace tessera::core
