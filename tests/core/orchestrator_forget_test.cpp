// Records of miners that are long gone.
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"
#include "tessera/core/invariants.h"

namespace tessera::test {
namespace {

constexpr TimeMs kIdleMs = 600'000;
constexpr TimeMs kDayMs = 24 * 3'600'000;

core::RunSpec quiet_spec() {
  core::RunSpec spec = small_spec(2, 1);
  spec.training.steps = 64;
  spec.merge.min_microbatches = 100;
  return spec;
}

TEST(Forgetting, ANewcomerTakesTheRoomOfWhoIsLongGoneAndNobodysNumber) {
  ScriptedSwarm swarm(quiet_spec());
  swarm.start();
  const size_t before = swarm.world.state().miners.size();
  ScriptedMiner passer(swarm.world, 901, 1);
  passer.sync();
  const MinerIndex number = passer.index();
  swarm.world.step(core::MinerLost{number, "silent"});
  swarm.world.pass(kIdleMs - 1);
  ScriptedMiner early(swarm.world, 902, 1);
  early.join();
  EXPECT_TRUE(swarm.world.state().miners.has(number));
  swarm.world.pass(1);
  ScriptedMiner late(swarm.world, 903, 1);
  late.join();
  EXPECT_FALSE(swarm.world.state().miners.has(number));
  EXPECT_EQ(swarm.world.state().by_node.count(passer.node()), 0u);
  EXPECT_EQ(swarm.world.state().miners.size(), before + 2);
  EXPECT_TRUE(swarm.world.said("its record is forgotten"));
  EXPECT_EQ(passer.join().miner, late.index() + 1);  // a newcomer like any other
  for (int i = 0; i < 3; ++i) passer.sync();
  EXPECT_TRUE(passer.record().ready);
  // What still comes under the old number changes nothing.
  const std::string dumped = core::dump(swarm.world.state());
  swarm.world.step(core::ReceiptsArrived{number, {core::Receipt{}}, {}});
  swarm.world.step(core::MinerLost{number, "silent"});
  swarm.world.step(core::StateHeld{number, {}});
  EXPECT_EQ(core::dump(swarm.world.state()), dumped);
}

TEST(Forgetting, WhoHasWorkedIsKeptForADay) {
  ScriptedSwarm swarm(quiet_spec());
  swarm.start();
  swarm.train(1);
  const MinerIndex worker = swarm.at(1, 0).index();
  ASSERT_EQ(swarm.world.miner(worker).counted, 1u);
  swarm.world.step(core::MinerLost{worker, "silent"});
  swarm.world.pass(60000);  // its leases are over
  swarm.world.pass(kDayMs - 60001);
  ScriptedMiner(swarm.world, 902, 1).join();
  EXPECT_TRUE(swarm.world.state().miners.has(worker));
  swarm.world.pass(1);
  ScriptedMiner(swarm.world, 903, 1).join();
  EXPECT_FALSE(swarm.world.state().miners.has(worker));
}

TEST(Forgetting, WhoIsNamedBySomethingUnderWayIsKept) {
  core::RunSpec spec = quiet_spec();
  spec.pipeline.miners_per_stage = 2;
  spec.merge.min_microbatches = 2;
  spec.merge.quorum = 1;
  spec.timeouts.merge_phase_ms = 3'600'000;
  ASSERT_TRUE(core::validate(&spec).ok());
  ScriptedSwarm swarm(spec);
  for (const auto& miner : swarm.miners) miner->habits.reduces = false;
  swarm.start();
  swarm.train(2);
  ASSERT_TRUE(swarm.sync_until([&] { return swarm.reducing(1); }));
  const MinerIndex participant = swarm.at(1, 0).index();
  ScriptedMiner& other = swarm.at(1, 1);
  ASSERT_EQ(swarm.world.stage(1).merge->uploads.count(participant), 1u);
  swarm.world.step(core::MinerLost{participant, "silent"});
  swarm.world.pass(kDayMs);
  const auto& merge = swarm.world.stage(1).merge;
  const bool named = merge && merge->invited.count(participant) + merge->uploads.count(participant) > 0;
  ScriptedMiner(swarm.world, 901, 1).join();
  EXPECT_EQ(swarm.world.state().miners.has(participant), named);
  EXPECT_TRUE(swarm.world.state().miners.has(other.index()));
}

// Passers-by never fill the table: each newcomer forgets more than one of them.
TEST(Forgetting, RecordsAreBoundedByWhoCameLately) {
  ScriptedSwarm swarm(quiet_spec());
  swarm.start();
  size_t most = 0;
  for (uint64_t number = 1000; number < 1400; ++number) {
    ScriptedMiner passer(swarm.world, number, 1);
    passer.join();
    swarm.world.step(core::MinerLost{passer.index(), "silent"});
    swarm.world.pass(kIdleMs / 20);
    most = std::max(most, swarm.world.state().miners.size());
  }
  EXPECT_LE(most, 2u + 22u);
  EXPECT_EQ(swarm.world.state().miners.next(), 402u);
}

}  // namespace
}  // namespace tessera::test
