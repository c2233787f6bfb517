// A stage without a model: plain vectors, a gradient that pulls every value towards zero, and
// payloads that say what they are, so that one that went astray is noticed. Deterministic in
// (stage, microbatch, weights). One thread uses an engine.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "tessera/core/messages.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::sim {

struct SimulatedEngineOptions {
  // Payloads and tokens of the size that the run gives them; else a payload is its label only, and
  // a microbatch comes without token ids.
  bool whole_tensors = true;
  // Called by every forward and backward before it works; an error is its result. May be empty.
  std::function<Status()> work = {};
};

class SimulatedEngine final : public ports::StageEngine {
 public:
  SimulatedEngine(const core::RunSpec& spec, StageIndex stage, SimulatedEngineOptions options = {});

  const std::vector<core::TensorLayout>& layout() const override { return layout_; }
  uint64_t value_count() const override { return masters_.size(); }
  StatusOr<ports::ForwardResult> forward(const core::MicrobatchKey& key,
                                         const std::vector<uint32_t>& tokens,
                                         const core::BoundaryPayload& input) override;
  StatusOr<ports::BackwardResult> backward(const core::MicrobatchKey& key,
                                           const core::BoundaryPayload& output_gradient,
                                           bool accumulate,
                                           const ports::InputGradientReady& input_gradient_ready) override;
  void discard(const core::MicrobatchKey& key) override { held_.erase(key); }
  StatusOr<ports::StepResult> step(double learning_rate) override;
  uint32_t accumulated_microbatches() const override { return accumulated_; }
  uint64_t weight_version() const override { return version_; }
  std::vector<float> masters() override { return masters_; }
  Status set_masters(const std::vector<float>& values) override;
  core::LocalState export_state() override;
  Status import_state(const core::LocalState& state) override;
  StatusOr<std::vector<ports::WeightVersion>> older_weights() override;

 private:
  struct Held {
    std::shared_ptr<const std::vector<float>> weights;
    uint64_t version = 0;
  };
  core::BoundaryPayload payload(uint32_t boundary, core::Direction direction,
                                MicrobatchId microbatch) const;
  Status check(const core::BoundaryPayload& payload, uint32_t boundary, core::Direction direction,
               MicrobatchId microbatch) const;
  bool is_tail() const { return stage_ + 1 == spec_.pipeline.stages; }
  void new_version();

  const core::RunSpec spec_;
  const StageIndex stage_;
  const SimulatedEngineOptions options_;
  std::vector<core::TensorLayout> layout_;
  std::vector<float> masters_;
  std::vector<float> first_moment_;
  std::vector<float> second_moment_;
  uint64_t optimizer_steps_ = 0;
  std::vector<float> gradient_;
  uint32_t accumulated_ = 0;
  uint64_t version_ = 0;
  std::shared_ptr<const std::vector<float>> weights_;
  std::map<core::MicrobatchKey, Held> held_;
};

}  // namespace tessera::sim
