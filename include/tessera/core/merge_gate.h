// The gate of a merge: which uploads count, by what their owners measured. Pure.
#pragma once

#include <cstddef>
#include <vector>

#include "tessera/core/merge_state.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

struct GateVerdict {
  size_t upload = 0;  // place in the manifest
  MergeFault fault = MergeFault::kNotFinite;
  double measure = 0;
  double bound = 0;
};

// Those to leave out, in the manifest's order, each for the first of: values that are not finite; a norm beyond
// merge.gate_norm_ratio of the median of the finite ones; a cosine to the mean of the others below merge.gate_cosine.
// Norm and cosine are judged from three finite uploads on: of two nobody can tell which is the odd one.
std::vector<GateVerdict> gate_uploads(const std::vector<UploadMeasure>& uploads, const MergeSpec& spec);

}  // namespace tessera::core
