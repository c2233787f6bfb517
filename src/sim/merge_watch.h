// What merges cost and lose in a simulation. It watches and decides nothing.
#pragma once

#include <optional>
#include <vector>

#include "tessera/core/orchestrator.h"
#include "tessera/sim/result.h"

namespace tessera::sim {

class MergeWatch {
 public:
  // `first_only`: of every stage only the first merge counts, the one that sim.dead_share strikes.
  explicit MergeWatch(bool first_only) : first_only_(first_only) {}

  // To be called after every step of the orchestrator.
  void look(const core::OrchestratorState& state);
  // A shard of a merge that counts lost both of its owners.
  void owners_killed() { ++without_owner_; }
  // What a miner's link carried for merges, in bytes; `uploaded`: with it a delta of its own.
  void transferred(uint64_t up, uint64_t down, bool uploaded);

  void fill(Result* result) const;

 private:
  struct Reducing {
    Epoch target = 0;
    uint64_t aborted = 0;  // merges of the stage, when it began
    uint64_t shards = 0;
  };
  struct Stage {
    bool seen = false;  // a merge that counts
    std::optional<Reducing> reducing;
  };
  void settle(const core::StageRecord& record, Stage* stage);

  const bool first_only_;
  std::vector<Stage> stages_;
  uint64_t shards_ = 0;         // of merges that are over
  uint64_t lost_ = 0;           // ... that were aborted
  uint64_t without_owner_ = 0;
  uint64_t bytes_up_ = 0;
  uint64_t bytes_down_ = 0;
  uint64_t uploads_ = 0;
};

}  // namespace tessera::sim
