// Who gets which stage: exhaustive small worlds, and seeds of larger ones.
#include "tessera/core/assignment.h"

#include <gtest/gtest.h>

#include <set>

#include "support/small_run.h"
#include "tessera/base/prng.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::PlacedMiner;
using core::StageMove;
using core::StageSituation;

std::vector<StageSituation> open_stages(size_t count) {
  return std::vector<StageSituation>(count, StageSituation{.work = 1, .gives = true, .takes = true});
}

PlacedMiner at(MinerIndex miner, StageIndex stage, double ms, size_t stages = 3) {
  return {.miner = miner, .stage = stage, .microbatch_ms = ms, .movable = true, .fits = std::vector<bool>(stages, true)};
}

double least(const std::vector<PlacedMiner>& miners, size_t stages) {
  const std::vector<double> all = core::stage_throughputs(miners, stages);
  return *std::min_element(all.begin(), all.end());
}

// Where the miner is after a move, and how fast it will be measured there.
void apply(const StageMove& move, const std::vector<StageSituation>& stages, std::vector<PlacedMiner>* miners) {
  for (PlacedMiner& miner : *miners) {
    if (miner.miner != move.miner) continue;
    miner.microbatch_ms *= stages[move.to].work / stages[move.from].work;
    miner.stage = move.to;
  }
}

TEST(StageMemory, FollowsItsFormula) {
  core::RunSpec spec = small_spec(2, 1);
  const double values = static_cast<double>(core::stage_value_count(spec, 0));
  // B 2, T 4, d 8, kv 8, f 16, h 2: 10 d + 2 kv + 4 f + h T = 168 values a token and layer, 2 d = 16 of the boundary.
  const double activations = 3 * 4.0 * 8 * (168 + 16);
  EXPECT_EQ(core::stage_memory_bytes(spec, 0, "cpu"), static_cast<uint64_t>((values * 24 + activations) * 1.15));
  EXPECT_LT(core::stage_memory_bytes(spec, 0, "cuda:0 X"), core::stage_memory_bytes(spec, 0, "cpu"));
  spec.pipeline.max_in_flight = 20;
  EXPECT_GT(core::stage_memory_bytes(spec, 0, "cpu"), static_cast<uint64_t>((values * 24 + activations) * 1.15));
  EXPECT_TRUE(core::fits(spec, 0, "cpu", 0));
  EXPECT_FALSE(core::fits(spec, 0, "cpu", 1000));
}

// An H200 with a middle stage of 4 layers, 243 M values, 16 x 1024 tokens, one microbatch in backward and three waiting took
// 20.35 GiB, and with recomputation by block 7.57 GiB (docs/performance.md).
TEST(StageMemory, IsWhatAGpuTook) {
  core::RunSpec spec;
  spec.pipeline.stages = 3;
  spec.model = {.layers = 12, .width = 2048, .heads = 32, .kv_heads = 8, .ffn_width = 8192, .vocab = 50304, .context = 1024};
  spec.training.microbatch_size = 16;
  spec.pipeline.max_in_flight = 3;
  spec.boundary.kind = core::BoundaryKind::kNone;
  spec.boundary.codec = Codec::kBf16;
  ASSERT_TRUE(core::validate(&spec).ok());
  constexpr double kGiB = 1 << 30;
  const auto needed = [&] { return static_cast<double>(core::stage_memory_bytes(spec, 1, "cuda:0")) / kGiB; };
  EXPECT_GT(needed(), 20.35);
  EXPECT_LT(needed(), 20.35 * 1.2);
  spec.training.recompute = core::Recompute::kBlock;
  EXPECT_GT(needed(), 7.57);
  EXPECT_LT(needed(), 7.57 * 1.3);
  spec.training.recompute = core::Recompute::kFull;
  EXPECT_GT(needed(), 9.64);
  EXPECT_LT(needed(), 9.64 * 1.3);
}

TEST(StageMemory, HasTheCodesOfTheWeightsOnAGpu) {
  core::RunSpec spec = small_spec(2, 1);
  const uint64_t gpu = core::stage_memory_bytes(spec, 0, "cuda:0"), cpu = core::stage_memory_bytes(spec, 0, "cpu");
  spec.training.matrix_products = core::MatrixProducts::kFp8;
  EXPECT_GE(core::stage_memory_bytes(spec, 0, "cuda:0"), gpu + 4 * core::stage_value_count(spec, 0));
  EXPECT_EQ(core::stage_memory_bytes(spec, 0, "cpu"), cpu);
}

TEST(StageMemory, SaysWhichRecomputationWouldFit) {
  core::RunSpec spec = small_spec(2, 1);
  spec.pipeline.max_in_flight = 100;
  const uint64_t needed = core::stage_memory_bytes(spec, 0, "cpu");
  EXPECT_NE(core::misfit(spec, 0, "cpu", needed - 1).find("training.recompute: block"), std::string::npos);
  EXPECT_EQ(core::misfit(spec, 0, "cpu", 1000).find("training.recompute"), std::string::npos);
}

TEST(StageMemory, SaysWhatIsMissing) {
  const std::string text = core::misfit(small_spec(2, 1), 1, "cpu", 1 << 20);
  EXPECT_NE(text.find("stage 1 needs"), std::string::npos);
  EXPECT_NE(text.find("announces 1 MiB"), std::string::npos);
  EXPECT_NE(text.find("pipeline.max_in_flight"), std::string::npos);
}

TEST(Throughput, CountsTheUnmeasuredAsTheMedian) {
  EXPECT_EQ(core::stage_throughputs({at(0, 0, 10), at(1, 0, 0), at(2, 1, 20), at(3, 1, 40)}, 2),
            (std::vector<double>{100 + 50, 50 + 25}));
  EXPECT_EQ(core::stage_throughputs({at(0, 0, 0)}, 2), (std::vector<double>{1000, 0}));
}

// Every placement of up to three miners with every speed: the newcomer's stage fits, takes, and no other such is poorer.
TEST(NewcomersStage, IsThePoorestThatFitsInEverySmallWorld) {
  const std::vector<double> speeds = {0, 10, 40};
  for (uint32_t world = 0; world < 4 * 4 * 4 * 27 * 64; ++world) {
    uint32_t rest = world;
    std::vector<PlacedMiner> miners;
    for (MinerIndex m = 0; m < 3; ++m) {
      const uint32_t stage = rest % 4;
      rest /= 4;
      const double ms = speeds[rest % 3];
      rest /= 3;
      if (stage < 3) miners.push_back(at(m, stage, ms));
    }
    std::vector<StageSituation> stages = open_stages(3);
    std::vector<bool> fits;
    for (StageIndex s = 0; s < 3; ++s) {
      fits.push_back(rest % 2 == 0);
      stages[s].takes = rest / 2 % 2 == 0;
      rest /= 4;
    }
    const std::vector<double> throughputs = core::stage_throughputs(miners, 3);
    const std::optional<StageIndex> chosen = core::choose_stage(miners, stages, fits, 0);
    for (StageIndex s = 0; s < 3; ++s) {
      if (!fits[s] || !stages[s].takes) {
        ASSERT_NE(chosen, std::optional(s));
        continue;
      }
      ASSERT_TRUE(chosen.has_value());
      ASSERT_LE(throughputs[*chosen], throughputs[s]);
    }
  }
}

TEST(NewcomersStage, IsFirstOneThatTheRunWaitsFor) {
  const std::vector<PlacedMiner> miners = {at(0, 0, 100), at(1, 0, 100), at(2, 1, 1)};
  EXPECT_EQ(core::choose_stage(miners, open_stages(2), {true, true}, 0), std::optional<StageIndex>(0));
  EXPECT_EQ(core::choose_stage(miners, open_stages(2), {true, true}, 2), std::optional<StageIndex>(1));
}

// Every placement of three miners in three stages, every speed, who may move and what may give.
TEST(Move, IsRightInEverySmallWorld) {
  const std::vector<double> speeds = {0, 10, 20, 40};
  uint32_t moves = 0;
  for (uint32_t world = 0; world < 27 * 64 * 8 * 8 * 3; ++world) {
    uint32_t rest = world;
    std::vector<PlacedMiner> miners;
    for (MinerIndex m = 0; m < 3; ++m) {
      miners.push_back(at(m, rest % 3, 0));
      rest /= 3;
      miners.back().microbatch_ms = speeds[rest % 4];
      rest /= 4;
      miners.back().movable = rest % 2 == 0;
      rest /= 2;
    }
    std::vector<StageSituation> stages = open_stages(3);
    for (StageIndex s = 0; s < 3; ++s) {
      stages[s].gives = rest % 2 == 0;
      stages[s].work = 1 + s;
      rest /= 2;
    }
    if (rest == 1) miners[0].fits[2] = false;
    if (rest == 2) stages[1].takes = false;
    for (const uint32_t needed : {1u, 3u}) {
      const auto move = core::choose_move(miners, stages, 0.15, needed);
      ASSERT_FALSE(core::choose_move(miners, stages, 0, needed).has_value());
      if (!move) continue;
      ++moves;
      ASSERT_EQ(core::wrong_with(*move, miners, stages, 0.15, needed), "") << "world " << world;
    }
  }
  EXPECT_GT(moves, 10000u);
}

TEST(Move, FillsAnEmptyStageAtOnce) {
  std::vector<StageSituation> stages = open_stages(2);
  stages[0].gives = false;
  const auto move = core::choose_move({at(0, 0, 10, 2), at(1, 0, 30, 2)}, stages, 0.15, 1);
  ASSERT_TRUE(move.has_value());
  EXPECT_TRUE(move->urgent);
  EXPECT_EQ(move->to, 1u);
  EXPECT_FALSE(core::choose_move({at(0, 0, 10, 2)}, stages, 0.15, 1).has_value());  // it would empty the other
}

TEST(Move, ASwarmThatIsSmallEverywhereIsInNoHurry) {
  std::vector<StageSituation> stages(2);
  const auto miner = [](MinerIndex index, StageIndex stage, double ms) {
    return PlacedMiner{.miner = index, .stage = stage, .microbatch_ms = ms, .movable = true, .fits = {true, true}};
  };
  // Both have less than half of six; the giver would have no more than the other.
  const std::vector<PlacedMiner> even = {miner(0, 0, 10), miner(1, 0, 10), miner(2, 1, 40), miner(3, 1, 40)};
  EXPECT_FALSE(choose_move(even, stages, 0.15, 6));
  stages[0].gives = true;
  const auto routine = choose_move(even, stages, 0.15, 6);
  EXPECT_TRUE(!routine || !routine->urgent);
}

TEST(Move, NeedsTheGain) {
  // 300 against 100: after the move of one of 100, 200 against 200.
  const std::vector<PlacedMiner> miners = {at(0, 0, 10, 2), at(1, 0, 10, 2), at(2, 0, 10, 2), at(3, 1, 10, 2)};
  EXPECT_TRUE(core::choose_move(miners, open_stages(2), 0.9, 1).has_value());
  EXPECT_FALSE(core::choose_move(miners, open_stages(2), 1.0, 1).has_value());
}

// From any placement the moves come to an end, and none takes back what one before gave.
TEST(Move, NeverOscillates) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    Prng random(mix64(seed));
    const size_t count = 2 + random.below(4);
    std::vector<StageSituation> stages = open_stages(count);
    for (StageSituation& stage : stages) stage.work = 1 + static_cast<double>(random.below(4));
    std::vector<PlacedMiner> miners;
    for (MinerIndex m = 0; m < 4 + random.below(10); ++m) {
      miners.push_back(at(m, static_cast<StageIndex>(random.below(count)), 5 + 40 * random.uniform(), count));
    }
    std::set<std::vector<StageIndex>> seen;
    double before = least(miners, count);
    for (int moves = 0;; ++moves) {
      ASSERT_LT(moves, 64) << "seed " << seed;
      std::vector<StageIndex> placement;
      for (const PlacedMiner& miner : miners) placement.push_back(miner.stage);
      ASSERT_TRUE(seen.insert(placement).second) << "seed " << seed << ": a placement comes back";
      const auto move = core::choose_move(miners, stages, 0.15, 1);
      if (!move) break;
      ASSERT_EQ(core::wrong_with(*move, miners, stages, 0.15, 1), "") << "seed " << seed;
      apply(*move, stages, &miners);
      const double after = least(miners, count);
      ASSERT_GE(after, before) << "seed " << seed;
      before = after;
    }
  }
}

}  // namespace
}  // namespace tessera::test
