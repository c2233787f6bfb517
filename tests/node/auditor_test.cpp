// Audits of an upload and of a carry: a lone stage's segment, recorded and judged on the same engine.
#include "tessera/node/auditor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/memory_ports.h"
#include "support/small_run.h"
#include "support/whole_upload.h"
#include "tessera/node/audit_store.h"
#include "tessera/node/objects.h"
#include "tessera/sim/simulated_engine.h"

namespace tessera::node {
namespace {

using core::AuditFinding;
using testing::HasSubstr;

class AuditorTest : public testing::Test {
 protected:
  AuditorTest() {
    spec_.merge.optimizer_moments = core::MergeMoments::kAverage;
    base_ = engine_.masters();
    task_.device = "cpu";
    task_.schedule_known = false;
    task_.begin = commit(1, engine_.export_state());
    task_.upload_base = *put_object(blobs_, encode_stage_state(base_, std::vector<float>(base_.size(), 0.0f)));
    step();
    snapshot_ = engine_.export_state();
    snapshot_version_ = engine_.weight_version();
    step();
    const std::vector<core::StepRecord> steps = std::move(task_.end.steps);
    task_.end = commit(2, engine_.export_state());
    task_.end.steps = steps;
  }
  core::SegmentCommit commit(uint64_t number, const core::LocalState& state) {
    core::miner_effect::StoreSegment segment;
    segment.commit = {.number = number, .local_step = steps_, .weight_version = engine_.weight_version(), .schedule_step = steps_};
    segment.state = std::make_shared<const core::LocalState>(state);
    return store_segment(blobs_, segment, {});
  }
  void step() {
    for (uint32_t i = 0; i < spec_.training.microbatches_per_step; ++i) {
      core::Receipt receipt;
      receipt.microbatch = receipt.sequence = task_.receipts.size() + 1;
      receipt.accumulated = true;
      receipt.local_step = steps_;
      receipt.order = engine_.accumulated_microbatches();
      const std::vector<uint32_t> tokens(spec_.training.microbatch_size * (spec_.model.context + 1));
      const auto result = engine_.forward({receipt.microbatch, 0}, tokens, {});
      receipt.weight_version = result->weight_version;
      receipt.loss = static_cast<float>(result->loss);
      EXPECT_TRUE(engine_.backward({receipt.microbatch, 0}, {}, true, {}).ok());
      task_.receipts.push_back(receipt);
    }
    task_.end.steps.push_back({0.1, spec_.training.microbatches_per_step, false});
    EXPECT_TRUE(engine_.step(0.1).ok());
    ++steps_;
  }
  // The segment ends with a merge, which the miner carries `share` of its work since `reference` over.
  void end_with_merge(const std::vector<float>& reference, float share) {
    std::vector<float> next = base_;
    for (float& value : next) value = 0.75f * value + 0.125f;
    task_.base = task_.upload_base;
    task_.next_base = *put_object(blobs_, encode_stage_state(next, std::vector<float>(next.size(), 0.0f)));
    core::LocalState state = engine_.export_state();
    for (size_t i = 0; i < next.size(); ++i) state.masters[i] = next[i] + share * (state.masters[i] - reference[i]);
    const std::vector<core::StepRecord> steps = task_.end.steps;
    task_.end = commit(2, state);
    task_.end.steps = steps;
    task_.end.epoch = 1;
  }
  core::AuditResult audit(const core::Moments& uploaded) {
    task_.upload = core::UploadCommit{.target = 1, .object = {}, .snapshot_step = 1, .snapshot_version = snapshot_version_};
    task_.upload->object = test::upload_delta(blobs_, spec_.merge, base_, snapshot_.masters, {}, &uploaded)->object;
    AuditorOptions options;
    options.device = "cpu";
    options.make_engine = [](const core::RunSpec& run, StageIndex stage, const core::BoxShape&) -> StatusOr<std::unique_ptr<ports::StageEngine>> {
      return std::make_unique<sim::SimulatedEngine>(run, stage);
    };
    return Auditor(std::move(options), spec_, test::small_data(), blobs_, tokens_).audit(task_, cancelled_);
  }

  core::RunSpec spec_ = test::small_spec(1, 1);
  test::MemoryBlobs blobs_;
  test::CountingTokens tokens_{spec_.model.vocab};
  const std::atomic<bool> cancelled_{false};
  sim::SimulatedEngine engine_{spec_, 0};
  core::AuditTask task_;
  core::LocalState snapshot_;
  uint64_t snapshot_version_ = 0;
  uint64_t steps_ = 0;
  std::vector<float> base_;
};

TEST_F(AuditorTest, UploadedMomentsAreThoseThatTheWorkLedTo) {
  const core::Moments honest{snapshot_.first_moment, snapshot_.second_moment};
  core::AuditResult result = audit(honest);
  EXPECT_EQ(result.finding, AuditFinding::kNone) << result.reason;
  EXPECT_EQ(result.judged, 2 * spec_.training.microbatches_per_step);

  core::Moments turned = honest;
  for (float& value : turned.first) value = -value;
  result = audit(turned);
  EXPECT_EQ(result.finding, AuditFinding::kUpload);
  EXPECT_THAT(result.reason, HasSubstr("the upload's first moments"));

  core::Moments shrunk = honest;
  for (float& value : shrunk.second) value *= 0.5f;
  result = audit(shrunk);
  EXPECT_EQ(result.finding, AuditFinding::kUpload);
  EXPECT_THAT(result.reason, HasSubstr("the upload's second moments"));
}

// The upload's snapshot, if the merge took it; else the base.
TEST_F(AuditorTest, ACarryIsTheWorkSinceWhatTheMergeTook) {
  const core::Moments moments{snapshot_.first_moment, snapshot_.second_moment};
  for (const std::vector<float>& reference : {snapshot_.masters, base_}) {
    end_with_merge(reference, 1);
    const core::AuditResult honest = audit(moments);
    EXPECT_EQ(honest.finding, AuditFinding::kNone) << honest.reason;
    end_with_merge(reference, -1);
    const core::AuditResult turned = audit(moments);
    EXPECT_EQ(turned.finding, AuditFinding::kWeights);
    EXPECT_THAT(turned.reason, HasSubstr("what it carried over the merge"));
  }
}

}  // namespace
}  // namespace tessera::node
