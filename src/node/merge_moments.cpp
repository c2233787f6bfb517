#include <algorithm>

#include "tessera/base/status.h"
#include "tessera/core/merge_planes.h"
#include "tessera/node/merge_transfer.h"

namespace tessera::node {
namespace {

// Its square is still a number. No gate looks at moments: what an upload makes of them may be wrong, but must not stop an
// engine.
constexpr float kLargestMoment = 0x1p63f;

float bounded(float value) { return std::clamp(value, -kLargestMoment, kLargestMoment); }

}  // namespace

core::Moments merged_moments(const core::RunSpec& spec, const std::vector<core::TensorLayout>& layout,
                             const std::vector<float>& merged) {
  const uint64_t values = layout.back().offset + layout.back().count;
  TESSERA_CHECK(core::merge_planes(spec.merge) == core::kMostMergePlanes);
  TESSERA_CHECK(merged.size() == core::merged_values(spec.merge, values));
  const float* const means = merged.data() + core::plane_begin(spec.merge, values, 1);
  const float* const roots = merged.data() + core::plane_begin(spec.merge, values, 2);
  core::Moments moments{std::vector<float>(values), std::vector<float>(values)};
  for (const core::TensorLayout& tensor : layout) {
    const bool has_second = spec.training.optimizer != core::OptimizerKind::kMuon || !core::is_for_muon(tensor);
    for (uint64_t i = tensor.offset; i < tensor.offset + tensor.count; ++i) {
      const float mean = bounded(means[i]), root = bounded(roots[i]);
      moments.first[i] = mean;
      if (has_second) moments.second[i] = std::max(root * root, mean * mean);
    }
  }
  return moments;
}

}  // namespace tessera::node
