// How much a run asks a miner to put into the blob store: what its key may store there beyond the share that every key has.
// Counted once for each thing that is asked, in sizes that hold whatever the wire formats are.
// Not thread-safe: the control thread's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include "tessera/core/orchestrator_state.h"

namespace tessera::node {

// Of one key.
struct BlobShare {
  uint64_t base_bytes = 0;  // without being asked
  uint64_t most_bytes = 0;  // at once
};
// `share_bytes`: of every key. Boundary tensors of the microbatches that a miner holds are stored before their receipts tell
// of them; that is in the base of a run with audits.
BlobShare blob_share(const core::OrchestratorState& state, uint64_t share_bytes);

class BlobAsks {
 public:
  // A process begins: what its predecessor was asked for it may be asked again.
  void begin(MinerIndex miner) { asked_.erase(miner); }
  void forget(MinerIndex miner) { asked_.erase(miner); }
  // Bytes that this answer asks for and none before it did; `receipts`: those that it acknowledges first.
  uint64_t news_in(const core::OrchestratorState& state, const core::MinerRecord& miner, const core::SyncAnswer& answer,
                   uint64_t receipts);

 private:
  struct Asked {
    Epoch upload = 0;                  // target of the merge
    Epoch reduced = 0;                 // target of the merge that the shards are of
    std::set<uint32_t> shards;
    std::optional<Epoch> published;
    uint64_t checkpoint = 0;
    std::optional<uint64_t> segment;   // the one before it
  };
  std::map<MinerIndex, Asked> asked_;
};

}  // namespace tessera::node
