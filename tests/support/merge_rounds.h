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

// Every participant of stage 0's merge to epoch 1 says what it reduced; participants 0 and 1 change what they say of the shard
// that the two share. `commit_of(directive, task)` is what is said otherwise. Returns that shard.
template <class CommitOf, class Change>
core::ShardTask reduce_with_a_pair(ScriptedSwarm& swarm, const CommitOf& commit_of, const Change& change) {
  core::ShardTask shared;
  for (const auto& miner : swarm.miners) {
    const core::MergeDirective directive = *miner->sync().merge;
    for (const core::ShardTask& task : directive.tasks) {
      const core::Merge& merge = *swarm.world.stage(0).merge;
      const core::PlannedShard& plan = merge.shards[task.shard - merge.first_shard].plan;
      core::ShardCommit commit = commit_of(directive, task);
      if (plan.owner_a == 0 && plan.owner_b == 1) {
        change(&commit);
        shared = task;
      }
      swarm.world.step(core::ShardCommitted{miner->index(), commit});
      if (!swarm.world.stage(0).merge) return shared;
    }
  }
  return shared;
}
inline core::ShardCommit honest_commit(const core::MergeDirective& directive, const core::ShardTask& task) {
  return reduction(1, directive.uploads, task);
}

}  // namespace tessera::test
