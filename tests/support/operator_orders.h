// What tests of assignments and of operators' orders share.
#pragma once

#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {

inline core::RunSpec admin_spec(uint32_t stages, uint32_t miners_per_stage) {
  core::RunSpec spec = small_spec(stages, miners_per_stage);
  spec.training.steps = 200;
  return spec;
}

inline std::string why(const StatusOr<std::optional<core::Event>>& order) { return message_of(order.status()); }

inline void obey(OrchestratorWorld& world, const StatusOr<std::optional<core::Event>>& order) {
  ASSERT_TRUE(order.ok()) << order.status();
  if (*order) world.step(**order);
}

// It reports that nothing is in flight any more, ends, and joins again as a new process.
inline void leave_and_join(ScriptedMiner& miner) {
  miner.sync();
  miner.restart();
  miner.join();
  for (int i = 0; i < 3; ++i) miner.sync();
}

}  // namespace tessera::test
