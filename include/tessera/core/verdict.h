// What was found out about a miner's work, with its evidence. Every verdict is an event of the ledger (VerdictRecorded) that
// rewards, traces and people read; who raises one decides nothing else about it.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/ids.h"

namespace tessera::core {

// What was judged.
enum class VerdictKind : uint8_t {
  kAuditedWork = 0,    // activations, boundary gradients, the weight delta or the tail's loss of a segment, computed again
  kMergeShard = 1,     // a reduction that the recomputation from the manifest's uploads contradicts or confirms
  kMergeUpload = 2,    // an upload at the merge's gate: its numbers, norm and cosine
  kReceipt = 3,        // a receipt or a payload's hash that its neighbour's signature contradicts
  kCommitment = 4,     // a committed state that is missing, or is not what was committed
  kInfrastructure = 5  // what could not be judged (missing payloads, a lost miner): never held against it
};
const char* name_of(VerdictKind kind);

struct Verdict {
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  Epoch epoch = 0;             // of the stage: that of the miner's state_held when it did the work
  VerdictKind kind = VerdictKind::kAuditedWork;
  bool passed = false;
  std::string reason;          // one sentence: what was compared, the figures, the limits
  Digest evidence;             // object in the blob store, or digest of what shows it; zero: the ledger itself shows it
  template <class A>
  void fields(A& a) {
    a("miner", miner)("stage", stage)("epoch", epoch)("kind", kind)("passed", passed)("reason", reason)(
        "evidence", evidence);
  }
};

// Fraud in the epoch's work: its score is void. An upload kept out by the gate counts for nothing in the merge already, and a
// fault of machines or links is nobody's fraud.
inline bool voids_epoch(const Verdict& verdict) {
  return !verdict.passed && verdict.kind != VerdictKind::kMergeUpload && verdict.kind != VerdictKind::kInfrastructure;
}

struct VerdictRecorded {
  static constexpr const char* kName = "verdict";
  Verdict verdict;
  template <class A>
  void fields(A& a) {
    a("verdict", verdict);
  }
};

}  // namespace tessera::core
