#include "adversaries/cheating_engine.h"

#include <array>
#include <utility>

#include "tessera/base/prng.h"
#include "tessera/core/stage_layout.h"
#include "tessera/kernels/codec.h"

namespace tessera::test {
namespace {

using core::BoundaryPayload;
using core::MicrobatchKey;

constexpr std::array<std::pair<Cheat, const char*>, 10> kNames = {{
    {Cheat::kNone, "none"},
    {Cheat::kNoise, "noise"},
    {Cheat::kReturnInput, "return-input"},
    {Cheat::kRepeatActivation, "repeat-activation"},
    {Cheat::kScaledGradient, "scaled-gradient"},
    {Cheat::kFlippedGradient, "flipped-gradient"},
    {Cheat::kWrongLoss, "wrong-loss"},
    {Cheat::kFrozenWeights, "frozen-weights"},
    {Cheat::kPoisonedWeights, "poisoned-weights"},
    {Cheat::kUnchangedUpload, "unchanged-upload"},
}};

constexpr float kScale = 4;
constexpr double kLossShare = 0.9;

class CheatingEngine final : public ports::StageEngine {
 public:
  CheatingEngine(std::unique_ptr<ports::StageEngine> engine, const core::RunSpec& spec, const CheatOptions& options)
      : engine_(std::move(engine)), spec_(spec), options_(options), random_(options.seed) {}

  const std::vector<core::TensorLayout>& layout() const override { return engine_->layout(); }
  uint64_t value_count() const override { return engine_->value_count(); }

  StatusOr<ports::ForwardResult> forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                         const BoundaryPayload& input) override {
    auto result = engine_->forward(key, tokens, input);
    if (!result.ok() || !cheats(key.microbatch)) return result;
    BoundaryPayload& output = result->output;
    if (output.bytes.empty()) {
      if (options_.cheat == Cheat::kWrongLoss) result->loss *= kLossShare;
      return result;
    }
    if (options_.cheat == Cheat::kNoise) output = noise();
    if (options_.cheat == Cheat::kReturnInput && !input.bytes.empty()) output = input;
    if (options_.cheat == Cheat::kRepeatActivation) {
      if (repeated_.bytes.empty()) repeated_ = output;
      output = repeated_;
    }
    return result;
  }

  StatusOr<ports::BackwardResult> backward(const MicrobatchKey& key, const BoundaryPayload& output_gradient, bool accumulate,
                                           const ports::InputGradientReady& ready) override {
    const auto changed = [&](BoundaryPayload payload) {
      if (!cheats(key.microbatch) || payload.bytes.empty()) return payload;
      if (options_.cheat == Cheat::kNoise) return noise();
      if (options_.cheat == Cheat::kScaledGradient) return times(payload, kScale);
      if (options_.cheat == Cheat::kFlippedGradient) return times(payload, -1);
      return payload;
    };
    ports::InputGradientReady wrapped;
    if (ready) wrapped = [&](BoundaryPayload payload) { ready(changed(std::move(payload))); };
    auto result = engine_->backward(key, output_gradient, accumulate, wrapped);
    if (result.ok()) result->input_gradient = changed(std::move(result->input_gradient));
    return result;
  }
  void discard(const MicrobatchKey& key) override { engine_->discard(key); }

  StatusOr<ports::StepResult> step(double learning_rate) override {
    const bool frozen = options_.cheat == Cheat::kFrozenWeights && random_.uniform() < options_.share;
    return engine_->step(frozen ? 0 : learning_rate);
  }
  uint32_t accumulated_microbatches() const override { return engine_->accumulated_microbatches(); }
  uint64_t weight_version() const override { return engine_->weight_version(); }

  // The state machine asks for the masters when it takes the snapshot that is uploaded, and when a merge is applied.
  std::vector<float> masters() override {
    std::vector<float> values = engine_->masters();
    if (options_.cheat == Cheat::kUnchangedUpload) {
      if (given_.empty()) given_ = values;
      return given_;
    }
    if (options_.cheat != Cheat::kPoisonedWeights) return values;
    for (float& value : values) value += 0.02f * (static_cast<float>(random_.uniform()) - 0.5f);
    return values;
  }
  Status set_masters(const std::vector<float>& values) override {
    if (options_.cheat == Cheat::kUnchangedUpload) given_ = values;
    return engine_->set_masters(values);
  }
  core::LocalState export_state() override { return engine_->export_state(); }
  Status import_state(const core::LocalState& state) override {
    if (options_.cheat == Cheat::kUnchangedUpload) given_ = state.masters;
    return engine_->import_state(state);
  }
  StatusOr<std::vector<ports::WeightVersion>> older_weights() override { return engine_->older_weights(); }

 private:
  // The same answer for one microbatch, whenever it is asked.
  bool cheats(MicrobatchId microbatch) const {
    return Prng(mix64(options_.seed ^ mix64(microbatch))).uniform() < options_.share;
  }

  int64_t width() const { return core::boundary_width(spec_); }

  BoundaryPayload encoded(const std::vector<float>& values) const {
    BoundaryPayload payload;
    kernels::EncodeParams params;
    params.input = values.data();
    params.rows = spec_.tokens_per_microbatch();
    params.width = width();
    params.codec = spec_.boundary.codec;
    payload.bytes.resize(payload_bytes(params.codec, static_cast<size_t>(params.rows), static_cast<size_t>(params.width)));
    params.payload = reinterpret_cast<uint8_t*>(payload.bytes.data());
    params.exponent = &payload.exponent;
    kernels::encode_cpu(params);
    return payload;
  }

  BoundaryPayload noise() {
    std::vector<float> values(static_cast<size_t>(spec_.tokens_per_microbatch()) * static_cast<size_t>(width()));
    for (float& value : values) value = static_cast<float>(random_.uniform() * 2 - 1);
    return encoded(values);
  }

  BoundaryPayload times(const BoundaryPayload& payload, float factor) const {
    std::vector<float> values(static_cast<size_t>(spec_.tokens_per_microbatch()) * static_cast<size_t>(width()));
    kernels::DecodeParams params;
    params.payload = reinterpret_cast<const uint8_t*>(payload.bytes.data());
    params.exponent = payload.exponent;
    params.rows = spec_.tokens_per_microbatch();
    params.width = width();
    params.codec = spec_.boundary.codec;
    params.output = values.data();
    kernels::decode_cpu(params);
    for (float& value : values) value *= factor;
    return encoded(values);
  }

  const std::unique_ptr<ports::StageEngine> engine_;
  const core::RunSpec spec_;
  const CheatOptions options_;
  Prng random_;
  BoundaryPayload repeated_;
  std::vector<float> given_;  // the masters that were last set
};

}  // namespace

const char* name_of(Cheat cheat) {
  for (const auto& [kind, name] : kNames) {
    if (kind == cheat) return name;
  }
  return "unknown";
}

std::optional<Cheat> cheat_named(const std::string& name) {
  for (const auto& [kind, known] : kNames) {
    if (known == name) return kind;
  }
  return std::nullopt;
}

std::unique_ptr<ports::StageEngine> cheating(std::unique_ptr<ports::StageEngine> engine, const core::RunSpec& spec,
                                             const CheatOptions& options) {
  if (options.cheat == Cheat::kNone) return engine;
  return std::make_unique<CheatingEngine>(std::move(engine), spec, options);
}

}  // namespace tessera::test
