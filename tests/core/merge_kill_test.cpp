// A merge that is struck after each of its events in turn: a participant is killed there, or starts anew, or the orchestrator
// crashes. The run must go on, with every replica at the same state and nobody accused.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/scripted_swarm.h"

namespace tessera::test {
namespace {

constexpr uint32_t kMiners = 4;

struct World {
  const char* name;
  double sample_share;  // 1: every shard is recomputed
  bool liar;            // miner 0 commits wrong reductions
};

core::RunSpec spec_of(const World& world) {
  core::RunSpec spec = small_spec(1, kMiners);
  spec.model.ffn_width = 64;  // more blocks than shards
  spec.training.steps = 1000;
  spec.merge.sample_share = world.sample_share;
  return spec;
}

enum class Blow { kNone, kParticipantDies, kParticipantRestarts, kOrchestratorCrashes };

// Two merges of one stage, the first of them struck after its event `strike_at`.
class StruckMerge {
 public:
  StruckMerge(const World& world, Blow blow, uint32_t victim, size_t strike_at)
      : swarm_(spec_of(world)), blow_(blow), victim_(victim), strike_at_(strike_at), dead_(kMiners, false) {
    swarm_.start();
    swarm_.at(0, 0).habits.lies = world.liar;
    for (const auto& miner : swarm_.miners) miner->habits.commits_first = true;
    swarm_.train(3);
    for (uint32_t i = 0; i < kMiners; ++i) swarm_.train_one(i);  // reported below: the merge begins there
    begin_ = swarm_.world.events.size();
    if (blow == Blow::kOrchestratorCrashes) {
      swarm_.world.crashes_after = [this](const core::Event&) { return is_due() && !std::exchange(struck_, true); };
    }
  }

  // Rounds of reports until everybody alive has made the merges; false if that takes too many.
  bool reach(Epoch epoch) {
    for (int round = 0; round < 60 && !is_at(epoch); ++round) {
      for (uint32_t i = 0; i < kMiners; ++i) {
        if (dead_[i]) continue;
        swarm_.at(0, i).sync();
        strike();
        recompute();
        strike();
      }
      if (round % 4 == 3) swarm_.world.pass(100);  // what waits for somebody must end by itself
      if (round % 16 == 15 && !stage().merge) train_more();  // after a pause who started anew must have work to be one of the quorum
      strike();
    }
    return is_at(epoch);
  }
  void train_more() {
    for (int i = 0; i < 8; ++i) {
      for (uint32_t replica = 0; replica < kMiners; ++replica) {
        if (!dead_[replica]) swarm_.train_one(replica);
      }
    }
  }

  const core::StageRecord& stage() const { return swarm_.world.stage(0); }
  size_t merge_events() const { return swarm_.world.events.size() - begin_; }
  bool struck() const { return struck_; }
  std::string names_of_events() const {
    std::string names;
    for (size_t i = begin_; i < swarm_.world.events.size(); ++i) names += core::event_name(swarm_.world.events[i]) + " ";
    return names;
  }
  void expect_consistent(const World& world, const std::string& where) {
    EXPECT_EQ(stage().replica_mismatches, 0u) << where;
    for (uint32_t i = 0; i < kMiners; ++i) {
      if (dead_[i]) continue;
      EXPECT_EQ(swarm_.at(0, i).state(), stage().state) << where << ", miner " << i;
    }
    for (const core::MergeVerdict& verdict : stage().merge_verdicts) {
      EXPECT_TRUE(world.liar && verdict.miner == swarm_.at(0, 0).index()) << where << ", miner " << verdict.miner;
    }
    EXPECT_EQ(swarm_.world.state().lost, 0u) << where;
    EXPECT_EQ(swarm_.world.state().done + swarm_.world.state().open.size(), swarm_.world.state().next_microbatch) << where;
  }

 private:
  bool is_due() const { return swarm_.world.events.size() > begin_ + strike_at_; }
  bool is_at(Epoch epoch) const {
    if (stage().epoch < epoch || stage().state.is_zero()) return false;
    for (uint32_t i = 0; i < kMiners; ++i) {
      if (!dead_[i] && swarm_.miners[i]->epoch() < stage().epoch) return false;
    }
    return true;
  }
  void strike() {
    if (struck_ || blow_ == Blow::kNone || blow_ == Blow::kOrchestratorCrashes || !is_due()) return;
    struck_ = true;
    ScriptedMiner& miner = swarm_.at(0, victim_);
    if (blow_ == Blow::kParticipantRestarts) {
      miner.restart();
      miner.join();
    } else {
      dead_[victim_] = true;
      swarm_.world.step(core::MinerLost{miner.index(), "silent"});
    }
  }
  void recompute() {
    while (!swarm_.world.recomputations.empty()) {
      const core::RecomputeShard job = swarm_.world.recomputations.front();
      swarm_.world.recomputations.pop_front();
      const core::ShardTask task{job.shard, job.first_block, job.block_count, job.token};
      const core::Event event = core::ShardRecomputed{job.stage, reduction(job.target, job.uploads, task), {}};
      swarm_.world.step(event);
      if (swarm_.world.crashes_after && swarm_.world.crashes_after(event)) swarm_.world.restart();
    }
  }

  ScriptedSwarm swarm_;
  const Blow blow_;
  const uint32_t victim_;
  const size_t strike_at_;
  std::vector<bool> dead_;
  size_t begin_ = 0;
  bool struck_ = false;
};

class MergeKill : public testing::TestWithParam<World> {};

TEST_P(MergeKill, EveryMomentOfAMergeSurvivesEveryBlow) {
  const World world = GetParam();
  StruckMerge whole(world, Blow::kNone, 0, 0);
  ASSERT_TRUE(whole.reach(1));
  const std::string names = whole.names_of_events();
  for (const char* kind : {"upload_committed", "shard_committed", "state_held"}) {
    ASSERT_NE(names.find(kind), std::string::npos) << names;
  }
  ASSERT_EQ(names.find("shard_recomputed") != std::string::npos, world.sample_share > 0 || world.liar) << names;
  ASSERT_GE(whole.merge_events(), 20u);
  for (size_t at = 0; at < whole.merge_events(); ++at) {
    for (const Blow blow : {Blow::kParticipantDies, Blow::kParticipantRestarts, Blow::kOrchestratorCrashes}) {
      for (uint32_t victim = 0; victim < (blow == Blow::kOrchestratorCrashes ? 1 : kMiners); ++victim) {
        const std::string where = fmt::format("blow {} to {} after event {}", static_cast<int>(blow), victim, at);
        StruckMerge merge(world, blow, victim, at);
        ASSERT_TRUE(merge.reach(1)) << where << ": " << merge.names_of_events();
        merge.expect_consistent(world, where);
        merge.train_more();
        ASSERT_TRUE(merge.reach(2)) << where << ": " << merge.names_of_events();
        merge.expect_consistent(world, where);
        // Blows to reports count only between their events; the last of them may come after the merge.
        ASSERT_TRUE(merge.struck() || blow == Blow::kOrchestratorCrashes) << where;
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, MergeKill,
                         testing::Values(World{"honest", 0, false}, World{"sampled", 1, false}, World{"withALiar", 0, true}),
                         [](const auto& world) { return std::string(world.param.name); });

}  // namespace
}  // namespace tessera::test
