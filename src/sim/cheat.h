// How a miner of a scenario cheats in merges: what it does with its own job's input and answer. Everything else about it is
// honest, and nothing of the product knows of it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/prng.h"
#include "tessera/core/miner_events.h"

namespace tessera::sim {

class Cheat {
 public:
  // A kind of sim.cheaters; empty: honest.
  explicit Cheat(std::string kind) : kind_(std::move(kind)) {}

  void sees(const std::vector<core::UploadRef>& uploads);
  // noise: as large as the true difference; flip: its opposite; scale: a hundred times it; stale: that of its first merge.
  void tamper(core::miner_effect::UploadDelta* job, const core::Values& base, Prng* random);
  // forge: the shards owned by its pair as a job of their own, in which only the manifest's first upload counts. Nothing if there
  // are none.
  std::optional<core::miner_effect::ReduceShards> forged(core::miner_effect::ReduceShards* job,
                                                         const std::function<bool(uint32_t shard)>& owned_by_pair) const;
  // lazy: anything; unavailable: it can't read the manifest's first upload; pair: the same lie as the other owner, and bytes of it
  // are nowhere; slander: with the other owner, that the manifest's last upload is huge.
  void tamper(core::ShardCommit* commit, bool owned_by_pair, Prng* random) const;

 private:
  const std::string kind_;
  std::vector<float> first_delta_;
  Digest first_upload_;
};

}  // namespace tessera::sim
