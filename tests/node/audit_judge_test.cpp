// What limits a change of the weights is held to.
#include "node/audit_judge.h"

#include <gtest/gtest.h>

#include "support/small_run.h"
#include "tessera/core/payload_name.h"
#include "tessera/core/stage_layout.h"

namespace tessera::node {
namespace {

class Judge : public ::testing::Test {
 protected:
  Judge() : spec_(test::small_spec(2, 1)) {
    spec_.boundary.codec = Codec::kFp32;
    for (size_t i = 0; i < start_.size(); ++i) expected_[i] = start_[i] + static_cast<float>(i % 7) - 3;
    noisy_ = expected_;
    // A tenth of the change's length, at right angles to it: a cosine of 0.995.
    for (size_t i = 0; i < noisy_.size(); ++i) noisy_[i] += i % 2 == 0 ? 0.2f : -0.2f;
  }
  core::BoundaryPayload activation(float last) const {
    std::vector<float> values(static_cast<size_t>(spec_.tokens_per_microbatch() * core::boundary_width(spec_)), 1.0f);
    values.back() = last;
    return {0, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float))};
  }
  // One microbatch of the head, whose activation ends with this where the replay has 1.
  void judge_microbatch(float last) {
    claimed_ = activation(last);
    core::Receipt receipt;
    receipt.output_hash = core::name_of(claimed_);
    const auto fault = judge_.microbatch(receipt, {.receipt = 0, .output = activation(1), .input_gradient = {}, .loss = 0});
    ASSERT_TRUE(fault.ok());
    ASSERT_FALSE(*fault) << (*fault)->reason;
  }
  bool passes(const std::vector<float>& claimed) {
    return !judge_.delta(core::AuditFinding::kWeights, "the change", start_, expected_, claimed);
  }

  core::RunSpec spec_;
  std::vector<float> start_ = std::vector<float>(700, 2.0f), expected_ = start_, noisy_;
  core::BoundaryPayload claimed_;
  AuditJudge judge_{spec_, [this](const Digest&) -> StatusOr<core::BoundaryPayload> { return claimed_; }};
};

TEST_F(Judge, WhereDevicesRoundDifferentlyWeightsMayToo) {
  judge_microbatch(1.001f);
  EXPECT_TRUE(passes(expected_));
  EXPECT_TRUE(passes(noisy_));
}

TEST_F(Judge, WhereEveryTensorIsEqualToTheBitWeightsAreToo) {
  judge_microbatch(1);
  EXPECT_TRUE(passes(expected_));
  EXPECT_FALSE(passes(noisy_));
  judge_microbatch(1.001f);  // it is not the same arithmetic after all
  EXPECT_TRUE(passes(noisy_));
}

TEST_F(Judge, WithoutATensorNothingIsKnownOfTheArithmetic) { EXPECT_TRUE(passes(noisy_)); }

}  // namespace
}  // namespace tessera::node
