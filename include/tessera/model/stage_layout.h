// What a stage's flat vector of fp32 values holds, and what it holds at the start of a run. Pure
// functions of the run's specification; no torch, so that programs which only read, write or export
// checkpoints can use them (library tessera_model_layout).
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/core/run_spec.h"
#include "tessera/core/stage_layout.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

using core::boundary_width;
using core::stage_layout;

// Values in the stage's flat vector.
inline uint64_t value_count(const std::vector<ports::TensorLayout>& layout) {
  return layout.empty() ? 0 : layout.back().offset + layout.back().count;
}

// The stage's values at the start of the run. Value i of a tensor depends on the run's seed, the
// tensor's name and i alone: not on the split into stages, the number of threads, or the kind of
// CPU (only +, *, / and sqrt of doubles are used), so that every node starts from the same bytes.
// `threads` 0: as many as there are processors.
std::vector<float> initial_values(const core::RunSpec& spec, StageIndex stage, int threads = 0);

}  // namespace tessera::model
