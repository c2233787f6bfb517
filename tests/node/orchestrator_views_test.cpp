// What an orchestrator tells about itself.
#include "node/orchestrator_views.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

nlohmann::json status_of(const ScriptedSwarm& swarm) {
  const std::map<MinerIndex, core::MinerStatus> statuses;
  const node::SilenceWatch heard;
  const StatusOr<std::string> text = node::view({swarm.world.core(), statuses, heard, 0, 0}, "status", "");
  EXPECT_TRUE(text.ok()) << text.status();
  return nlohmann::json::parse(text.value_or("{}"));
}

// Every lease began a microbatch or went on with one: who counts what was lost needs all the kinds.
TEST(StatusView, ARepairedHeadsLeaseIsToldApartFromNewOnes) {
  ScriptedSwarm swarm(small_spec(2, 2));
  swarm.start();
  swarm.at(0, 0).sync();
  const MicrobatchId first = swarm.at(0, 0).leases.front().microbatch;
  swarm.world.step(core::MinerLost{swarm.at(0, 0).index(), "silent"});
  ScriptedMiner& other = swarm.at(0, 1);
  other.leases.clear();
  other.sync();
  const nlohmann::json status = status_of(swarm);
  ASSERT_TRUE(std::any_of(other.leases.begin(), other.leases.end(), [&](const core::Lease& lease) {
    return lease.microbatch == first && lease.repair;
  }));
  EXPECT_GE(status.value("microbatches_repaired", 0), 1);
  EXPECT_EQ(status.value("microbatches_repaired", 0u), swarm.world.state().repaired);
  EXPECT_EQ(status.value("lost", -1), 0);
  const uint64_t begun = status.value("microbatches_leased", 0u) - status.value("microbatches_reissued", 0u) -
                         status.value("microbatches_repaired", 0u);
  EXPECT_EQ(begun, swarm.world.state().open.size() + swarm.world.state().done);
}

}  // namespace
}  // namespace tessera::test
