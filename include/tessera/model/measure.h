// Measures a stage on its device: forward, backward and optimizer step, without wire and network.
// For tessera-bench. No torch here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

struct StepCase {
  std::string name;
  core::RunSpec spec;    // validated
  StageIndex stage = 0;  // its weights are drawn at random, its inputs too
  PassKind pass = PassKind::kBest;
};

struct MeasureOptions {
  uint32_t warmup_steps = 5;
  uint32_t steps = 10;  // of a timed block
  uint32_t blocks = 3;  // the best one counts
  uint32_t in_flight = 1;  // microbatches of a step that are between forward and backward at once
  std::function<void()> warmed_up;  // called before the timed blocks
};

struct StepMeasurement {
  double seconds = 0;  // of one step: one microbatch forward and backward, one optimizer step
  double forward_seconds = 0, backward_seconds = 0, optimizer_seconds = 0;  // each waited for
  // Until forward and backward are enqueued, not waited for: while it is below what they take on the
  // device, nothing is gained by launching them as one graph. On a CPU: of the work itself.
  double launch_seconds = 0;
  uint64_t tokens = 0;
  uint64_t parameters = 0;         // all of the stage
  double operations = 0;           // floating-point, of one step: step_operations()
  uint64_t peak_memory_bytes = 0;  // of the device's allocator; 0 on a CPU
};
StatusOr<StepMeasurement> measure_step(const StepCase& step_case, const std::string& device,
                                       const MeasureOptions& options);

// Floating-point operations of forward and backward of one microbatch, without recomputation:
// 6 tokens (values of all matrices, a table that is only looked up not counted) + for each layer
// causal attention, 3 * 2 B T^2 d (half of the full square; a product is two operations).
double step_operations(const core::RunSpec& spec, StageIndex stage);

// The rate of a large bf16 (on a CPU fp32) matrix product, in operations a second, and of a copy in
// device memory, in bytes a second (read plus written): the roofline of what is measured. Both for
// some tens of milliseconds from rest, which a GPU's clock does not hold out for longer.
struct Ceilings {
  double operations_per_second = 0;
  double bytes_per_second = 0;
};
StatusOr<Ceilings> measure_ceilings(const std::string& device);

// The same product's rate for as long as steps are measured, by the same rule: `options` blocks and
// steps of `step_seconds` each, after its warm-up steps. What a GPU at its power limit can do.
StatusOr<double> measure_sustained_product(const std::string& device, const MeasureOptions& options,
                                           double step_seconds);

}  // namespace tessera::model
