// What a merge moves of a stage: planes of one number for each of the stage's values, one behind the other.
//
//   merge.optimizer_moments   planes
//   local, reset              pseudo-gradient
//   average                   pseudo-gradient | first moments | square roots of the second moments
//
// Every plane begins with a block, so that a block is of one plane; what the plane before leaves of its last block is zeros:
//
//   0               V       S               S + V   2 S             2 S + V
//   +---------------+-------+---------------+-------+---------------+
//   | base - master | zeros | m             | zeros | sqrt(v)       |    V = stage_values, S = V rounded up to whole blocks
//   +---------------+-------+---------------+-------+---------------+
//
// Uploads, the plan, reduced shards and their results are all cut from this one vector of merged_values() fp32 values.
#pragma once

#include <cstdint>

#include "tessera/core/run_spec.h"

namespace tessera::core {

inline constexpr uint64_t kMostMergePlanes = 3;

constexpr uint64_t merge_planes(const MergeSpec& merge) {
  return merge.optimizer_moments == MergeMoments::kAverage ? kMostMergePlanes : 1;
}

// Blocks of one plane. The first plane's are those that the gate looks at.
constexpr uint64_t plane_blocks(const MergeSpec& merge, uint64_t stage_values) {
  return (stage_values + merge.block_values - 1) / merge.block_values;
}

constexpr uint64_t merged_blocks(const MergeSpec& merge, uint64_t stage_values) {
  return merge_planes(merge) * plane_blocks(merge, stage_values);
}

// The place of a plane's first value.
constexpr uint64_t plane_begin(const MergeSpec& merge, uint64_t stage_values, uint64_t plane) {
  return plane * plane_blocks(merge, stage_values) * merge.block_values;
}

constexpr uint64_t merged_values(const MergeSpec& merge, uint64_t stage_values) {
  return plane_begin(merge, stage_values, merge_planes(merge) - 1) + stage_values;
}

}  // namespace tessera::core
