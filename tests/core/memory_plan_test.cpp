// What the states of a model take on each GPU of a box.
#include "tessera/core/memory_plan.h"

#include <gtest/gtest.h>

#include "support/small_run.h"
#include "tessera/core/assignment.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::Accounting;
using core::BoxPlan;

double total(uint32_t zero, Accounting accounting) {
  const auto bytes = core::plan_state_bytes(7e9, 8, zero, accounting);
  EXPECT_TRUE(bytes.ok());
  return bytes->total() / 1e9;
}

TEST(MemoryPlan, SevenBillionParametersOnEightGpus) {
  const double fp32[] = {112, 63, 38.5, 14}, mixed[] = {126, 52.5, 28, 15.75};
  for (uint32_t zero = 0; zero <= 3; ++zero) {
    EXPECT_DOUBLE_EQ(total(zero, Accounting::kFp32), fp32[zero]) << zero;
    EXPECT_DOUBLE_EQ(total(zero, Accounting::kMixed), mixed[zero]) << zero;
  }
}

TEST(MemoryPlan, OneGpuHoldsEverythingInEveryStage) {
  for (uint32_t zero = 0; zero <= 3; ++zero) {
    EXPECT_DOUBLE_EQ(core::plan_state_bytes(1e6, 1, zero, Accounting::kMixed)->total(), 18e6);
  }
}

TEST(MemoryPlan, RefusesWhatIsNoBox) {
  EXPECT_FALSE(core::plan_state_bytes(0, 8, 0, Accounting::kFp32).ok());
  EXPECT_FALSE(core::plan_state_bytes(7e9, 0, 0, Accounting::kFp32).ok());
  EXPECT_FALSE(core::plan_state_bytes(7e9, 65, 0, Accounting::kFp32).ok());
  EXPECT_FALSE(core::plan_state_bytes(7e9, 8, 4, Accounting::kFp32).ok());
}

TEST(MemoryPlan, OfABox) {
  const core::RunSpec spec = small_spec(3, 1);
  const auto plans = core::plan_box(spec, 4, uint64_t{1} << 40);
  ASSERT_TRUE(plans.ok());
  ASSERT_EQ(plans->size(), 12u);
  for (size_t i = 0; i < plans->size(); ++i) {
    const BoxPlan& plan = (*plans)[i];
    EXPECT_TRUE(plan.fits);
    EXPECT_GT(plan.activations, 0);
    if (plan.zero_stage > 0) {
      EXPECT_LT(plan.states, (*plans)[i - 1].states);
    }
  }
  // One GPU without ZeRO is what the orchestrator admits miners by.
  const auto single = core::plan_box(spec, 1, 1);
  EXPECT_NEAR((*single)[0].total, static_cast<double>(core::stage_memory_bytes(spec, 0, "cuda:0")), 4);
  EXPECT_FALSE((*single)[0].fits);
}

TEST(MemoryPlan, ABoxAnnouncesWhatItCouldHold) {
  EXPECT_EQ(core::equivalent_memory_bytes(1000, 8, 0), 1000u);
  EXPECT_EQ(core::equivalent_memory_bytes(1000, 8, 3), 8000u);
  EXPECT_EQ(core::equivalent_memory_bytes(1000, 1, 3), 1000u);
  // 20 bytes of a value against 8 + 12 / 2.
  EXPECT_EQ(core::equivalent_memory_bytes(700, 2, 1), 1000u);
}

TEST(StageUnits, AreReceiverHalvesOfLayersAndSender) {
  const core::RunSpec spec = small_spec(3, 1);
  std::vector<std::string> units;
  for (const core::TensorLayout& tensor : core::stage_layout(spec, 1)) {
    if (units.empty() || units.back() != core::unit_of(tensor)) units.push_back(core::unit_of(tensor));
  }
  const core::LayerRange layers = core::layers_of(spec, 1);
  ASSERT_EQ(units.size(), 2 + 2 * (layers.end - layers.begin));
  EXPECT_EQ(units.front(), "receiver");
  EXPECT_EQ(units[1], "layer " + std::to_string(layers.begin) + " attention");
  EXPECT_EQ(units[2], "layer " + std::to_string(layers.begin) + " feed-forward");
  EXPECT_EQ(units.back(), "sender");
}

}  // namespace
}  // namespace tessera::test
