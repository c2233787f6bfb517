// A miner's word on its own state. A segment is its work from one of these to the next (docs/trust.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/ids.h"

namespace tessera::core {

inline constexpr size_t kMaxSegmentSteps = 4096;
inline constexpr size_t kMaxOlderWeights = 64;
inline constexpr size_t kMaxDroppedNames = 4096;
inline constexpr size_t kMaxSegmentReceipts = 8192;  // an audit has to fit into one message

// Weights older than the newest that microbatches in flight still used when a segment began.
struct OlderWeights {
  uint64_t version = 0;
  Digest object;
  template <class A>
  void fields(A& a) {
    a("version", version)("object", object);
  }
};

struct StepRecord {
  double learning_rate = 0;
  uint32_t microbatches = 0;  // whose gradients it took the mean of
  bool skipped = false;       // the gradient was not finite: it was dropped and the weights stayed
  template <class A>
  void fields(A& a) {
    a("learning_rate", learning_rate)("microbatches", microbatches)("skipped", skipped);
  }
};

// A miner's word on its state at the begin of a segment. What is named here lies in the blob store before this is sent.
struct SegmentCommit {
  uint64_t number = 0;                // from 1 within an incarnation, without gaps
  Epoch epoch = 0;
  uint64_t local_step = 0;            // steps done; as in the receipts
  uint64_t weight_version = 0;
  uint64_t schedule_step = 0;
  uint32_t accumulated = 0;           // microbatches in the partial gradient
  uint64_t first_receipt = 0;         // number of the segment's first
  Digest state;                       // object of the LocalState; zero: it could not be stored
  std::vector<OlderWeights> older;    // by version
  // Of the segment that ends here:
  std::vector<StepRecord> steps;
  // False: it can't be re-run, because a backward pass failed and took the accumulated gradient with it, or a merge came
  // before the commitment to its begin was stored.
  bool whole = true;
  std::vector<Digest> dropped;        // payloads that could not be stored: their microbatches can't be audited
  template <class A>
  void fields(A& a) {
    a("number", number)("epoch", epoch)("local_step", local_step)("weight_version", weight_version)(
        "schedule_step", schedule_step)("accumulated", accumulated)("first_receipt", first_receipt)("state", state)(
        "older", older)("steps", steps)("whole", whole)("dropped", dropped);
  }
};

// What is wrong with a commitment from outside; empty: nothing.
std::string flaw_of(const SegmentCommit& commit);

}  // namespace tessera::core
