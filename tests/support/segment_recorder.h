// Plays a miner's compute thread over a real engine and writes down what an auditor gets: states, receipts, steps, payloads.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/core/payload_name.h"
#include "tessera/node/replay.h"

namespace tessera::test {

class PayloadShelf final : public node::ReplayInputs {
 public:
  StatusOr<std::vector<uint32_t>> tokens(MicrobatchId microbatch) override {
    const auto found = tokens_.find(microbatch);
    if (found == tokens_.end()) return not_found("no tokens of microbatch {}", microbatch);
    return found->second;
  }
  StatusOr<core::BoundaryPayload> payload(const Digest& name) override {
    const auto found = payloads_.find(name);
    if (found == payloads_.end()) return not_found("no payload {}", name.brief());
    return found->second;
  }
  void put_tokens(MicrobatchId microbatch, std::vector<uint32_t> tokens) { tokens_[microbatch] = std::move(tokens); }
  Digest put(const core::BoundaryPayload& payload) {
    const Digest name = core::name_of(payload);
    if (!name.is_zero()) payloads_[name] = payload;
    return name;
  }
  void forget(const Digest& name) { payloads_.erase(name); }

 private:
  std::map<MicrobatchId, std::vector<uint32_t>> tokens_;
  std::map<Digest, core::BoundaryPayload> payloads_;
};

class SegmentRecorder {
 public:
  SegmentRecorder(ports::StageEngine& engine, StageIndex stage, PayloadShelf& shelf)
      : engine_(engine), stage_(stage), shelf_(shelf) {}

  core::BoundaryPayload forward(MicrobatchId microbatch, const std::vector<uint32_t>& tokens, const core::BoundaryPayload& input) {
    shelf_.put_tokens(microbatch, tokens);
    auto result = engine_.forward({microbatch, 0}, tokens, input);
    EXPECT_TRUE(result.ok()) << result.status();
    core::Receipt& receipt = open_[microbatch];
    receipt.microbatch = microbatch;
    receipt.stage = stage_;
    receipt.input_hash = shelf_.put(input);
    receipt.output_hash = shelf_.put(result->output);
    receipt.weight_version = result->weight_version;
    receipt.loss = static_cast<float>(result->loss);
    return std::move(result->output);
  }

  core::BoundaryPayload backward(MicrobatchId microbatch, const core::BoundaryPayload& gradient, bool accumulate = true) {
    core::Receipt receipt = open_.extract(microbatch).mapped();
    receipt.sequence = ++sequence_;
    receipt.gradient_in_hash = shelf_.put(gradient);
    receipt.accumulated = accumulate;
    receipt.local_step = local_step_;
    receipt.order = engine_.accumulated_microbatches();
    auto result = engine_.backward({microbatch, 0}, gradient, accumulate);
    EXPECT_TRUE(result.ok()) << result.status();
    receipt.gradient_out_hash = shelf_.put(result->input_gradient);
    segment_.receipts.push_back(receipt);
    return std::move(result->input_gradient);
  }

  void step(double learning_rate) {
    const uint32_t microbatches = engine_.accumulated_microbatches();
    EXPECT_TRUE(engine_.step(learning_rate).ok());
    segment_.steps.push_back({learning_rate, microbatches, false});
    ++local_step_;
  }

  // Ends the segment and begins the next.
  node::Segment cut() {
    node::Segment ended = std::move(segment_);
    segment_ = {};
    segment_.start = engine_.export_state();
    segment_.older = engine_.older_weights().value();
    segment_.weight_version = engine_.weight_version();
    segment_.local_step = local_step_;
    return ended;
  }

 private:
  ports::StageEngine& engine_;
  const StageIndex stage_;
  PayloadShelf& shelf_;
  std::map<MicrobatchId, core::Receipt> open_;
  node::Segment segment_;
  uint64_t sequence_ = 0;
  uint64_t local_step_ = 0;
};

}  // namespace tessera::test
