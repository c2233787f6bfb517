#include "tessera/node/replay.h"

#include <utility>

namespace tessera::node {
namespace {

using core::MicrobatchKey;
using core::Receipt;

MicrobatchKey key_of(const Receipt& receipt) { return {receipt.microbatch, receipt.attempt}; }

class Replay {
 public:
  Replay(ports::StageEngine& engine, const Segment& segment, ReplayInputs& inputs,
         const std::set<uint64_t>& wanted_versions, const std::function<Status(const ReplayedMicrobatch&)>& done,
         bool with_moments)
      : engine_(engine),
        segment_(segment),
        inputs_(inputs),
        wanted_(wanted_versions),
        done_(done),
        with_moments_(with_moments) {}

  StatusOr<ReplayedSegment> run() {
    TESSERA_RETURN_IF_ERROR(begin());
    for (size_t step = 0; step <= segment_.steps.size(); ++step) {
      TESSERA_RETURN_IF_ERROR(backwards_of(segment_.local_step + step));
      if (step < segment_.steps.size()) TESSERA_RETURN_IF_ERROR(take_step(segment_.steps[step], step));
    }
    if (next_ != segment_.receipts.size()) {
      const Receipt& odd = segment_.receipts[next_];
      return invalid_argument("receipt {} is of local step {}, which is not in the segment or comes out of order",
                              odd.sequence, odd.local_step);
    }
    result_.masters = engine_.masters();
    return std::move(result_);
  }

 private:
  // Microbatches that were in flight already are put there with the weights they used, then the state is installed.
  Status begin() {
    for (const ports::WeightVersion& older : segment_.older) {
      TESSERA_RETURN_IF_ERROR(engine_.set_masters(older.values));
      TESSERA_RETURN_IF_ERROR(forwards_of(older.version));
    }
    TESSERA_RETURN_IF_ERROR(engine_.import_state(segment_.start));
    version_ = segment_.weight_version;
    note_version();
    return ok_status();
  }

  void note_version() {
    if (wanted_.count(version_) == 0) return;
    if (!with_moments_) {
      result_.at_version[version_] = engine_.masters();
      return;
    }
    core::LocalState state = engine_.export_state();
    result_.at_version[version_] = std::move(state.masters);
    result_.moments_at[version_] = {std::move(state.first_moment), std::move(state.second_moment)};
  }

  Status forward(size_t index) {
    const Receipt& receipt = segment_.receipts[index];
    TESSERA_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, inputs_.tokens(receipt.microbatch));
    core::BoundaryPayload input;
    if (receipt.stage > 0) {
      TESSERA_ASSIGN_OR_RETURN(input, inputs_.payload(receipt.input_hash));
    }
    TESSERA_ASSIGN_OR_RETURN(forwarded_[index], engine_.forward(key_of(receipt), tokens, input));
    return ok_status();
  }

  // Those of every receipt from here on that used these weights.
  Status forwards_of(uint64_t version) {
    for (size_t i = next_; i < segment_.receipts.size(); ++i) {
      if (segment_.receipts[i].weight_version != version || forwarded_.count(i) > 0) continue;
      TESSERA_RETURN_IF_ERROR(forward(i));
    }
    return ok_status();
  }

  Status backwards_of(uint64_t local_step) {
    for (; next_ < segment_.receipts.size() && segment_.receipts[next_].local_step == local_step; ++next_) {
      const Receipt& receipt = segment_.receipts[next_];
      if (forwarded_.count(next_) == 0) {
        if (receipt.weight_version != version_) {
          return invalid_argument("receipt {} names weight version {}, which is neither in use nor the newest, {}",
                                  receipt.sequence, receipt.weight_version, version_);
        }
        TESSERA_RETURN_IF_ERROR(forward(next_));
      }
      TESSERA_RETURN_IF_ERROR(backward(next_));
    }
    return ok_status();
  }

  Status backward(size_t index) {
    const Receipt& receipt = segment_.receipts[index];
    if (receipt.order != engine_.accumulated_microbatches()) {
      return invalid_argument("receipt {} has place {} in its step's sum, but {} microbatches are in it", receipt.sequence,
                              receipt.order, engine_.accumulated_microbatches());
    }
    core::BoundaryPayload gradient;
    if (!is_tail(receipt)) {
      TESSERA_ASSIGN_OR_RETURN(gradient, inputs_.payload(receipt.gradient_in_hash));
    }
    TESSERA_ASSIGN_OR_RETURN(ports::BackwardResult result,
                             engine_.backward(key_of(receipt), gradient, receipt.accumulated));
    auto forwarded = forwarded_.extract(index);
    return done_({.receipt = index,
                  .output = std::move(forwarded.mapped().output),
                  .input_gradient = std::move(result.input_gradient),
                  .loss = forwarded.mapped().loss});
  }

  // Only the tail sends nothing on.
  static bool is_tail(const Receipt& receipt) { return receipt.gradient_in_hash.is_zero(); }

  Status take_step(const core::StepRecord& record, size_t number) {
    TESSERA_RETURN_IF_ERROR(forwards_of(version_));
    if (record.microbatches != engine_.accumulated_microbatches()) {
      return invalid_argument("local step {} took {} microbatches, but the receipts before it have {}",
                              segment_.local_step + number, record.microbatches, engine_.accumulated_microbatches());
    }
    const auto result = engine_.step(record.learning_rate);
    if (!result.ok() && !absl::IsDataLoss(result.status())) return result.status();
    if (result.ok() == record.skipped) {
      return invalid_argument("local step {} is said to be {}, but it {}", segment_.local_step + number,
                              record.skipped ? "skipped" : "taken", result.ok() ? "can be taken" : "has no finite gradient");
    }
    if (result.ok()) ++version_;
    note_version();
    return ok_status();
  }

  ports::StageEngine& engine_;
  const Segment& segment_;
  ReplayInputs& inputs_;
  const std::set<uint64_t>& wanted_;
  const std::function<Status(const ReplayedMicrobatch&)>& done_;
  const bool with_moments_;
  uint64_t version_ = 0;  // the miner's number of the newest weights
  size_t next_ = 0;       // of the receipts
  std::map<size_t, ports::ForwardResult> forwarded_;
  ReplayedSegment result_;
};

}  // namespace

StatusOr<ReplayedSegment> replay_segment(ports::StageEngine& engine, const Segment& segment, ReplayInputs& inputs,
                                         const std::set<uint64_t>& wanted_versions,
                                         const std::function<Status(const ReplayedMicrobatch&)>& done, bool with_moments) {
  return Replay(engine, segment, inputs, wanted_versions, done, with_moments).run();
}

}  // namespace tessera::node
