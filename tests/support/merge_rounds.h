// Merges of a scripted swarm, round after round of reports.
#pragma once

#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {

// One stage is enough for most of it: a head that is the tail too.
inline core::RunSpec one_stage(uint32_t miners) {
  core::RunSpec spec = small_spec(1, miners);
  spec.training.steps = 1000;
  return spec;
}

inline void finish_recomputation(OrchestratorWorld& world) {
  ASSERT_FALSE(world.recomputations.empty());
  const core::RecomputeShard job = world.recomputations.front();
  world.recomputations.pop_front();
  const core::ShardTask task{job.shard, job.first_block, job.block_count, job.token};
  world.step(core::ShardRecomputed{job.stage, reduction(job.target, job.uploads, task), {}});
}

// Rounds of reports, and whatever the orchestrator recomputes.
template <class Condition>
bool merge_until(ScriptedSwarm& swarm, Condition condition) {
  return swarm.sync_until([&] {
    while (!swarm.world.recomputations.empty()) finish_recomputation(swarm.world);
    return condition();
  });
}

}  // namespace tessera::test
