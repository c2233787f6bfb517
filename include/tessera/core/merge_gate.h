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

struct MeasuredShard {
  std::vector<UploadMeasure> measures;  // of every upload; none: the shard is empty
  bool verified = false;                // recomputed: else its two owners' word
  bool only_moments = false;            // holds no part of the pseudo-gradients: tells of values that are not finite only
};

// What a pair of owners says of its one shard must not decide on an upload. Returned, in order, are shards to recompute before
// gate_uploads() of the sums may be believed; none: it may. Asked again with these verified, it comes to an end.
// A verdict is believed if eight verified shards alone give it too (for values that are not finite: one that has such), or
// all are verified. Else up to four shards that speak most for it are returned, and others at random (`draw`, a secret) until
// eight are verified. So are shards that hold more of the uploads' energy than max(1/4, 4 / shards) of all: who owns one
// could hide any upload behind it.
std::vector<size_t> shards_to_verify(const std::vector<MeasuredShard>& shards, size_t uploads, const MergeSpec& spec, uint64_t draw);

}  // namespace tessera::core
