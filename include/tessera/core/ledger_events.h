// Events that publish what was secret for a while (docs/formats/journal.md#sealed). None changes what the orchestrator does:
// they are for whoever reads the ledger.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/ids.h"

namespace tessera::core {

// A microbatch whose pathway was proposed at random; it is complete, so nobody can act on knowing that.
struct RandomLease {
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  std::vector<MinerIndex> pathway;  // as proposed
  template <class A>
  void fields(A& a) {
    a("microbatch", microbatch)("attempt", attempt)("pathway", pathway);
  }
};
// Which of the microbatches that were completed since the last of these events had random pathways.
struct RandomLeasesPublished {
  static constexpr const char* kName = "random_leases_published";
  std::vector<RandomLease> leases;
  template <class A>
  void fields(A& a) {
    a("leases", leases);
  }
};

struct PublishedPairing {
  uint32_t shard = 0;           // its number, as in ShardTask
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  MinerIndex owner_a = kNoMiner;
  MinerIndex owner_b = kNoMiner;  // the same as owner_a in a merge of one
  template <class A>
  void fields(A& a) {
    a("shard", shard)("first_block", first_block)("block_count", block_count)("owner_a", owner_a)("owner_b", owner_b);
  }
};
// Who shared which shard, of a merge that is over.
struct PairingsPublished {
  static constexpr const char* kName = "pairings_published";
  StageIndex stage = 0;
  Epoch target = 0;
  std::vector<PublishedPairing> pairings;
  template <class A>
  void fields(A& a) {
    a("stage", stage)("target", target)("pairings", pairings);
  }
};

// The key of sealed entries: everyone can read those of this kind and number from now on. A ledger that seals fills in the
// key when it writes the entry; to the state machine it means nothing.
struct SecretUnsealed {
  static constexpr const char* kName = "secret_unsealed";
  std::string kind;             // of the sealed entries
  uint64_t id = 0;              // their seal_id()
  Digest key;
  template <class A>
  void fields(A& a) {
    a("kind", kind)("id", id)("key", key);
  }
};

}  // namespace tessera::core
