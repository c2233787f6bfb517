#include "apps/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tessera::apps {

StatusOr<uint32_t> Sampler::pick(const std::vector<float>& logits) {
  const size_t count = std::min<size_t>(logits.size(), vocab_);
  TESSERA_CHECK(count > 0);
  for (size_t id = 0; id < count; ++id) {
    if (!std::isfinite(logits[id])) {
      return data_loss(
          "the logit of token {} is not a number: the model has diverged; use an "
          "earlier checkpoint",
          id);
    }
  }
  std::vector<uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0u);
  const size_t wanted = temperature_ == 0 ? 1
                        : top_k_ == 0     ? count
                                          : std::min<size_t>(top_k_, count);
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(wanted), ids.end(),
                    [&](uint32_t a, uint32_t b) {
                      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                    });
  if (wanted == 1) return ids[0];
  std::vector<double> cumulative(wanted);
  double sum = 0;
  for (size_t i = 0; i < wanted; ++i) {
    const double below_best = static_cast<double>(logits[ids[i]]) - logits[ids[0]];
    sum += std::exp(below_best / temperature_);
    cumulative[i] = sum;
  }
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), prng_.uniform() * sum);
  const auto place =
      std::min<int64_t>(found - cumulative.begin(), static_cast<int64_t>(wanted) - 1);
  return ids[static_cast<size_t>(place)];
}

}  // namespace tessera::apps
