// A call of a box's engine that hangs ends when the group is aborted, with a message.
#include "model/box_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

namespace tessera::model {
namespace {

// Lets go of those who wait when it is aborted.
class HangingGroup final : public ports::CollectiveGroup {
 public:
  uint32_t rank() const override { return 0; }
  uint32_t size() const override { return 1; }
  ports::PendingResult all_reduce(const ports::Numbers&) override { return refusal(); }
  ports::PendingResult reduce_scatter(const ports::Numbers&, const ports::Numbers&) override { return refusal(); }
  ports::PendingResult all_gather(const ports::Numbers&, const ports::Numbers&) override { return refusal(); }
  ports::PendingResult broadcast(const ports::Numbers&, uint32_t) override { return refusal(); }
  Status barrier() override { return ok_status(); }
  void abort() override { aborted_.set_value(); }
  void wait_for_abort() { aborted_.get_future().wait(); }

 private:
  static ports::PendingResult refusal() { return internal_error("not in this test"); }
  std::promise<void> aborted_;
};

// Its forward pass waits for a worker that never comes; its step does not.
class HangingEngine final : public ports::StageEngine {
 public:
  explicit HangingEngine(std::shared_ptr<HangingGroup> group) : group_(std::move(group)) {}
  const std::vector<ports::TensorLayout>& layout() const override { return layout_; }
  uint64_t value_count() const override { return 0; }
  StatusOr<ports::ForwardResult> forward(const ports::MicrobatchKey&, const std::vector<uint32_t>&,
                                         const ports::BoundaryPayload&) override {
    group_->wait_for_abort();
    return ports::ForwardResult{};
  }
  StatusOr<ports::BackwardResult> backward(const ports::MicrobatchKey&, const ports::BoundaryPayload&, bool,
                                           const ports::InputGradientReady&) override {
    return ports::BackwardResult{};
  }
  void discard(const ports::MicrobatchKey&) override {}
  StatusOr<ports::StepResult> step(double) override { return ports::StepResult{.gradient_norm = 2, .weight_version = 1}; }
  uint32_t accumulated_microbatches() const override { return 0; }
  uint64_t weight_version() const override { return 0; }
  std::vector<float> masters() override { return {}; }
  Status set_masters(const std::vector<float>&) override { return ok_status(); }
  ports::LocalState export_state() override { return {}; }
  Status import_state(const ports::LocalState&) override { return ok_status(); }

 private:
  const std::shared_ptr<HangingGroup> group_;
  const std::vector<ports::TensorLayout> layout_;
};

TEST(BoxWatch, EndsACallThatHangs) {
  const auto group = std::make_shared<HangingGroup>();
  BoxOptions box;
  box.groups = {group};
  box.patience = std::chrono::milliseconds(20);
  const auto engine = watched(std::make_unique<HangingEngine>(group), box);
  const auto result = engine->forward({1, 0}, {}, {});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(message_of(result.status()), testing::HasSubstr("a forward pass on the GPUs of this box did not end within 20 ms"));
  // What comes after it is not believed either.
  EXPECT_EQ(engine->step(1e-3).status().code(), absl::StatusCode::kInternal);
}

TEST(BoxWatch, LeavesCallsAloneThatEnd) {
  const auto group = std::make_shared<HangingGroup>();
  BoxOptions box;
  box.groups = {group};
  const auto engine = watched(std::make_unique<HangingEngine>(group), box);
  for (int i = 0; i < 100; ++i) {
    const auto result = engine->step(1e-3);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->gradient_norm, 2);
  }
}

}  // namespace
}  // namespace tessera::model
