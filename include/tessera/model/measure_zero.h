// Measures a stage on the GPUs of a box: memory of each by part, and the time of a step. For tessera-bench. No torch here.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/measure.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

struct ZeroCase {
  core::RunSpec spec;  // validated; training.microbatch_size is the whole box's
  StageIndex stage = 0;
  BoxOptions box;      // at least one device
};

// Of one worker, in bytes. The allocator's figures are 0 on a CPU.
struct WorkerMemory {
  uint64_t weights = 0, gradients = 0, optimizer = 0;  // live tensors
  uint64_t buckets = 0;       // gathered units and gradients under way
  uint64_t activations = 0;   // the rest of what was allocated at the peak: activations, workspaces, a second version of weights
  uint64_t allocator = 0;     // reserved beyond the peak
};

struct ZeroMeasurement {
  double seconds = 0;                // of one step: one microbatch forward and backward, one optimizer step
  uint64_t tokens = 0;               // of all workers
  uint64_t parameters = 0;
  double stalled_milliseconds = 0;   // of a step: computation that waited for gathered weights, the worst worker's
  std::vector<WorkerMemory> workers;
};
// Weights and inputs are drawn at random; each worker draws its own sequences, nothing goes over the wire.
StatusOr<ZeroMeasurement> measure_zero(const ZeroCase& zero_case, const MeasureOptions& options);

}  // namespace tessera::model
