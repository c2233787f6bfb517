#include "tessera/core/merge_gate.h"

#include <algorithm>
#include <cmath>

namespace tessera::core {
namespace {

double median_norm(const std::vector<UploadMeasure>& uploads) {
  std::vector<double> energies;
  for (const UploadMeasure& upload : uploads) {
    if (upload.is_finite()) energies.push_back(upload.energy);
  }
  if (energies.size() < 3) return 0;
  const auto middle = energies.begin() + static_cast<std::ptrdiff_t>(energies.size() / 2);
  std::nth_element(energies.begin(), middle, energies.end());
  return std::sqrt(*middle);
}

}  // namespace

std::vector<GateVerdict> gate_uploads(const std::vector<UploadMeasure>& uploads, const MergeSpec& spec) {
  std::vector<GateVerdict> out;
  const double median = median_norm(uploads);  // 0: too few, or half of them moved nothing
  for (size_t i = 0; i < uploads.size(); ++i) {
    const UploadMeasure& upload = uploads[i];
    if (!upload.is_finite()) {
      out.push_back({i, MergeFault::kNotFinite, 0, 0});
      continue;
    }
    if (median == 0) continue;
    const double norm = std::sqrt(upload.energy);
    const double cosine = upload.energy > 0 ? upload.alignment / upload.energy : 0.0;
    if (norm > median * spec.gate_norm_ratio) {
      out.push_back({i, MergeFault::kNorm, norm, median * spec.gate_norm_ratio});
    } else if (norm < median / spec.gate_norm_ratio) {
      out.push_back({i, MergeFault::kNorm, norm, median / spec.gate_norm_ratio});
    } else if (cosine < spec.gate_cosine) {
      out.push_back({i, MergeFault::kCosine, cosine, spec.gate_cosine});
    }
  }
  return out;
}

}  // namespace tessera::core
