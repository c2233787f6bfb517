// A whole swarm of scripted miners: stages x replicas, registered and ready.
#pragma once

#include <memory>
#include <vector>

#include "support/scripted_miner.h"
#include "support/small_run.h"

namespace tessera::test {

class ScriptedSwarm {
 public:
  // Miner `replica` of stage `s` is number s * 100 + replica + 1.
  explicit ScriptedSwarm(const core::RunSpec& spec, uint64_t secret = 7) : world(spec, secret) {
    for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
      for (uint32_t replica = 0; replica < spec.pipeline.miners_per_stage; ++replica) {
        miners.push_back(std::make_unique<ScriptedMiner>(world, s * 100 + replica + 1, s));
      }
    }
  }
  // Everyone loads and says so.
  void start() {
    sync_all();
    sync_all();
    sync_all();
  }
  void sync_all() {
    for (const auto& miner : miners) miner->sync();
  }
  // Rounds of reports until it is so; false if that takes too many.
  template <class Condition>
  bool sync_until(Condition condition) {
    for (int round = 0; round < 20 && !condition(); ++round) sync_all();
    return condition();
  }
  // The stage's merge is in its reduce phase.
  bool reducing(StageIndex s = 0) const {
    return world.stage(s).merge && world.stage(s).merge->phase == core::MergePhase::kReduce;
  }
  ScriptedMiner& at(StageIndex stage, uint32_t replica) {
    return *miners.at(stage * world.state().spec.pipeline.miners_per_stage + replica);
  }
  // The head `replica` leases one microbatch, and replica `replica` of every stage does its part of
  // it.
  core::Lease train_one(uint32_t replica) {
    ScriptedMiner& head = at(0, replica);
    for (int tries = 0; tries < 3 && head.leases.empty(); ++tries) head.sync();
    TESSERA_CHECK(!head.leases.empty());
    const core::Lease lease = head.leases.front();
    head.leases.erase(head.leases.begin());
    for (StageIndex s = 0; s < world.state().stages.size(); ++s)
      at(s, replica).receipt(lease.microbatch, lease.attempt);
    return lease;
  }
  // `each` microbatches through every replica, reported.
  void train(uint32_t each) {
    for (uint32_t i = 0; i < each; ++i) {
      for (uint32_t replica = 0; replica < world.state().spec.pipeline.miners_per_stage; ++replica)
        train_one(replica);
      sync_all();
    }
  }

  OrchestratorWorld world;
  std::vector<std::unique_ptr<ScriptedMiner>> miners;
};

}  // namespace tessera::test
