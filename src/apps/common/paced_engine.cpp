#include "common/paced_engine.h"

#include <chrono>
#include <thread>
#include <utility>

namespace tessera::apps {
namespace {

using ports::BoundaryPayload;
using ports::LocalState;
using ports::MicrobatchKey;
using ports::TensorLayout;
using std::chrono::steady_clock;

class PacedEngine final : public ports::StageEngine {
 public:
  PacedEngine(std::unique_ptr<ports::StageEngine> engine, std::chrono::milliseconds pace)
      : engine_(std::move(engine)), pace_(pace) {}

  const std::vector<TensorLayout>& layout() const override { return engine_->layout(); }
  uint64_t value_count() const override { return engine_->value_count(); }
  StatusOr<ports::ForwardResult> forward(const MicrobatchKey& key,
                                         const std::vector<uint32_t>& tokens,
                                         const BoundaryPayload& input) override {
    const steady_clock::time_point end = steady_clock::now() + pace_;
    auto result = engine_->forward(key, tokens, input);
    std::this_thread::sleep_until(end);
    return result;
  }
  StatusOr<ports::BackwardResult> backward(
      const MicrobatchKey& key, const BoundaryPayload& output_gradient, bool accumulate,
      const ports::InputGradientReady& input_gradient_ready) override {
    const steady_clock::time_point end = steady_clock::now() + pace_;
    auto result = engine_->backward(key, output_gradient, accumulate, input_gradient_ready);
    std::this_thread::sleep_until(end);
    return result;
  }
  void discard(const MicrobatchKey& key) override { engine_->discard(key); }
  StatusOr<ports::StepResult> step(double learning_rate) override {
    return engine_->step(learning_rate);
  }
  uint32_t accumulated_microbatches() const override { return engine_->accumulated_microbatches(); }
  uint64_t weight_version() const override { return engine_->weight_version(); }
  std::vector<float> masters() override { return engine_->masters(); }
  Status set_masters(const std::vector<float>& values) override {
    return engine_->set_masters(values);
  }
  LocalState export_state() override { return engine_->export_state(); }
  Status import_state(const LocalState& state) override { return engine_->import_state(state); }
  StatusOr<std::vector<ports::WeightVersion>> older_weights() override { return engine_->older_weights(); }

 private:
  const std::unique_ptr<ports::StageEngine> engine_;
  const std::chrono::milliseconds pace_;
};

}  // namespace

std::unique_ptr<ports::StageEngine> paced(std::unique_ptr<ports::StageEngine> engine,
                                          uint32_t pace_ms) {
  if (pace_ms == 0) return engine;
  return std::make_unique<PacedEngine>(std::move(engine), std::chrono::milliseconds(pace_ms));
}

}  // namespace tessera::apps
