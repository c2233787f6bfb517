// Measures the optimizer step of a stage on its device, beside the same step in plain ATen
// operators and beside a copy of the same bytes. For tessera-bench. No torch here.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/measure.h"

namespace tessera::model {

struct OptimizerMeasurement {
  uint64_t parameters = 0;
  double seconds = 0;  // of a step: norm, clipping, update, compute weights
  // The same with at::_fused_adamw_ (adamw, and muon's rest), at::'s elementwise operators (nadam)
  // or one matrix after the other (muon), the norm by at::linalg_vector_norm and a cast.
  double plain_seconds = 0;
  // What must pass memory at least: each number once, but the gradient twice (the norm comes
  // first).
  double bytes = 0;
  double copy_seconds = 0;  // of a copy that reads and writes as many bytes in all
  double operations = 0;    // of Muon's matrix products
};

// `spec`: validated; its training.optimizer is measured, on random numbers.
StatusOr<OptimizerMeasurement> measure_optimizer(const core::RunSpec& spec, StageIndex stage,
                                                 const std::string& device,
                                                 const MeasureOptions& options);

}  // namespace tessera::model
