// Re-running a segment of a miner's work (core/audit_messages.h): from the state it committed to, through the forwards,
// backwards and steps that its receipts tell of, on an engine of the same stage. With the same device kind, thread count and
// training.deterministic the bits are the miner's.
//
// What is in flight when a segment begins has used older weights; the commitment brings them. The order is the receipts':
// a forward is run when it is first needed or when its weights are about to be replaced, so that no more microbatches are
// held than the miner held.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/audit_messages.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::node {

// Where a replay finds what the miner was given. NOT_FOUND: it is not there.
class ReplayInputs {
 public:
  virtual ~ReplayInputs() = default;
  virtual StatusOr<std::vector<uint32_t>> tokens(MicrobatchId microbatch) = 0;
  // A payload by the name that the receipt has for it.
  virtual StatusOr<core::BoundaryPayload> payload(const Digest& name) = 0;
};

struct Segment {
  core::LocalState start;
  uint64_t weight_version = 0;
  uint64_t local_step = 0;
  std::vector<ports::WeightVersion> older;
  std::vector<core::Receipt> receipts;
  std::vector<core::StepRecord> steps;
};

// What the stage makes of one receipt's microbatch.
struct ReplayedMicrobatch {
  size_t receipt = 0;  // its place in Segment::receipts
  core::BoundaryPayload output;          // empty at the tail
  core::BoundaryPayload input_gradient;  // empty at the head
  double loss = 0;                       // at the tail
};

struct ReplayedSegment {
  std::vector<float> masters;                         // at its end
  std::map<uint64_t, std::vector<float>> at_version;  // of those that were asked for
  std::map<uint64_t, core::Moments> moments_at;       // likewise, if `with_moments`
};

// Calls `done` for every receipt, in their order; an error of `done` ends the replay with that error.
// Errors: INVALID_ARGUMENT if receipts and steps contradict each other, those of `inputs`, those of the engine.
StatusOr<ReplayedSegment> replay_segment(
    ports::StageEngine& engine, const Segment& segment, ReplayInputs& inputs,
    const std::set<uint64_t>& wanted_versions,
    const std::function<Status(const ReplayedMicrobatch&)>& done, bool with_moments = false);

}  // namespace tessera::node
