#include "tessera/core/merge_gate.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "tessera/base/prng.h"

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

constexpr size_t kGateChecks = 8;
constexpr size_t kMostTelling = 4;  // shards a verdict
constexpr double kDominance = 0.25;

double middle_energy(const std::vector<UploadMeasure>& measures) {
  std::vector<double> energies;
  for (const UploadMeasure& measure : measures) {
    if (measure.is_finite()) energies.push_back(measure.energy);
  }
  if (energies.empty()) return 0;
  const auto middle = energies.begin() + static_cast<std::ptrdiff_t>(energies.size() / 2);
  std::nth_element(energies.begin(), middle, energies.end());
  return *middle;
}

// How much a shard's measures speak for a verdict.
double weight_for(const GateVerdict& verdict, const std::vector<UploadMeasure>& measures, const MergeSpec& spec) {
  const UploadMeasure& own = measures[verdict.upload];
  if (verdict.fault == MergeFault::kNotFinite) return own.is_finite() ? 0 : 1;
  if (verdict.fault == MergeFault::kCosine) return spec.gate_cosine * own.energy - own.alignment;
  return std::abs(own.energy - middle_energy(measures));
}

// The shards not verified yet that speak most for it, at most kMostTelling.
void add_most_telling(const std::vector<MeasuredShard>& shards, const std::vector<size_t>& open, const GateVerdict& verdict,
                      const MergeSpec& spec, std::set<size_t>* wanted) {
  std::vector<std::pair<double, size_t>> telling;
  for (const size_t i : open) {
    const double weight = weight_for(verdict, shards[i].measures, spec);
    if (weight > 0 || std::isnan(weight)) telling.emplace_back(std::isnan(weight) ? HUGE_VAL : weight, i);
  }
  std::sort(telling.begin(), telling.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  if (telling.size() > kMostTelling) telling.resize(kMostTelling);
  for (const auto& [weight, i] : telling) wanted->insert(i);
}

std::set<size_t> dominant_shards(const std::vector<MeasuredShard>& shards) {
  std::vector<double> energies;
  double total = 0;
  size_t count = 0;
  for (const MeasuredShard& shard : shards) {
    energies.push_back(middle_energy(shard.measures));
    total += energies.back();
    count += !shard.measures.empty() && !shard.only_moments;
  }
  std::set<size_t> dominant;
  if (total == 0) return dominant;
  const double most = std::max(kDominance, 4.0 / static_cast<double>(count)) * total;
  for (size_t i = 0; i < shards.size(); ++i) {
    const bool is_within = energies[i] <= most && std::isfinite(energies[i]);  // a sum of lies may overflow
    if (!shards[i].measures.empty() && !shards[i].verified && !is_within) dominant.insert(i);
  }
  return dominant;
}

}  // namespace

std::vector<size_t> shards_to_verify(const std::vector<MeasuredShard>& shards, size_t uploads, const MergeSpec& spec, uint64_t draw) {
  std::vector<UploadMeasure> all(uploads), certain(uploads);
  std::vector<size_t> open;
  size_t verified = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    if (shards[i].measures.empty()) continue;
    for (size_t u = 0; u < uploads; ++u) all[u].add(shards[i].measures[u]);
    if (!shards[i].verified) {
      open.push_back(i);
      continue;
    }
    verified += !shards[i].only_moments;
    for (size_t u = 0; u < uploads; ++u) certain[u].add(shards[i].measures[u]);
  }
  std::set<size_t> wanted = dominant_shards(shards);
  const std::vector<GateVerdict> sure = gate_uploads(certain, spec);
  bool needs_more = false;
  for (const GateVerdict& verdict : gate_uploads(all, spec)) {
    const bool is_seen = std::any_of(sure.begin(), sure.end(), [&](const GateVerdict& other) {
      return other.upload == verdict.upload && other.fault == verdict.fault;
    });
    if (is_seen && (verdict.fault == MergeFault::kNotFinite || verified >= kGateChecks)) continue;
    needs_more |= verdict.fault != MergeFault::kNotFinite;
    add_most_telling(shards, open, verdict, spec, &wanted);
  }
  Prng random(draw ^ verified);
  std::erase_if(open, [&](size_t i) { return wanted.count(i) > 0 || shards[i].only_moments; });
  while (needs_more && !open.empty() && (wanted.empty() || verified + wanted.size() < kGateChecks)) {
    const size_t pick = random.below(open.size());
    wanted.insert(open[pick]);
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(pick));
  }
  return {wanted.begin(), wanted.end()};
}

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
