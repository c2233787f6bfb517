// A small stage and its merge.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/core/run_spec.h"

namespace tessera::node {

inline constexpr uint32_t kBlock = 256;
inline constexpr uint64_t kBlocks = 6;
inline constexpr uint64_t kValues = (kBlocks - 1) * kBlock + 17;  // the last block is a short one

inline std::vector<float> delta_of(float start) {
  std::vector<float> values(kValues);
  for (size_t i = 0; i < values.size(); ++i) values[i] = start + static_cast<float>(i % 97) / 8;
  return values;
}

inline core::MergeSpec merge_of(Codec uploads, Codec results) {
  core::MergeSpec merge;
  merge.block_values = kBlock;
  merge.upload_format = uploads;
  merge.result_format = results;
  return merge;
}

}  // namespace tessera::node
