// The arithmetic of a merge's reduction alone, without the transfers.
#pragma once

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/kernels/merge_reducer.h"

namespace tessera::apps {

// GB/s of the uploads' fp32 values that pass through it, in groups of blocks and in `threads` threads as a miner's. `device`:
// null is the CPU.
StatusOr<double> reducer_rate(kernels::MergeReducer* device, const core::MergeSpec& merge, uint32_t uploads, size_t threads);

}  // namespace tessera::apps
