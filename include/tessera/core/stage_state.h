// Values of a stage that travel between threads and nodes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/ids.h"

namespace tessera::core {

// A compressed boundary tensor of rows = B * T (tokens in order, batch major). kernels/codec.h says what the bytes are.
struct BoundaryPayload {
  int32_t exponent = 0;
  std::string bytes;
};

struct MicrobatchKey {
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  auto operator<=>(const MicrobatchKey&) const = default;
};

// A replica's own optimizer state and partial gradient, in the stage's flat layout.
struct LocalState {
  std::vector<float> masters;
  std::vector<float> first_moment;
  std::vector<float> second_moment;
  uint64_t optimizer_steps = 0;       // age of the moments (bias correction)
  std::vector<float> gradient;        // accumulated since the last step; empty if there is none
  uint32_t gradient_microbatches = 0;
  std::vector<float> residual;        // of the merge's uploads: what their rounding left out; empty: nothing
};

// The part of it that merges with optimizer_moments: average have in common.
struct Moments {
  std::vector<float> first;
  std::vector<float> second;
};

// One version of a stage's weights, as they compute: exact when they are rounded to the device's type of computation.
struct WeightVersion {
  uint64_t version = 0;
  std::vector<float> values;
};

// What a miner's own checkpoint says of the LocalState in it: enough to know whether it fits the stage's state that the next
// process is given (docs/formats/local-state.md).
struct LocalCheckpoint {
  std::string run_id;
  StageIndex stage = 0;
  Epoch epoch = 0;
  Digest base;                         // the stage's state that the masters have moved away from
  uint64_t steps = 0;                  // local steps of all processes of this miner
  uint64_t schedule_step = 0;
  std::vector<MicrobatchId> accumulated;  // the newest in its masters and partial gradient: not to be accumulated again
  template <class A>
  void fields(A& a) {
    a("run_id", run_id)("stage", stage)("epoch", epoch)("base", base)("steps", steps)(
        "schedule_step", schedule_step)("accumulated", accumulated);
  }
};

// How far a miner has come, noted after every step: what of it a restart could not bring back is counted.
struct StepNote {
  std::string run_id;
  StageIndex stage = 0;
  uint64_t steps = 0;                  // local steps of all processes of this miner
  uint64_t merged_steps = 0;           // of them those before the last merge: they are in the base
  bool operator==(const StepNote&) const = default;
  template <class A>
  void fields(A& a) {
    a("run_id", run_id)("stage", stage)("steps", steps)("merged_steps", merged_steps);
  }
};

// What a new process found of the one before.
struct Recovered {
  std::optional<LocalCheckpoint> checkpoint;  // its masters, moments and partial gradient are taken over
  bool moments = false;                       // only the moments: the stage has moved on since
  uint64_t steps = 0;                         // local steps of all processes before
  uint64_t merged_steps = 0;                  // of `steps` those that are in the base, or lost
  uint64_t steps_lost = 0;
  std::string text;                           // for the log; empty: there was nothing to find
};

using Values = std::shared_ptr<const std::vector<float>>;
using SharedMoments = std::shared_ptr<const Moments>;

}  // namespace tessera::core
