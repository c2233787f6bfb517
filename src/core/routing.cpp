#include "tessera/core/routing.h"

#include <algorithm>
#include <tuple>

namespace tessera::core {
namespace {

constexpr double kUnknownMs = 1;  // when nobody is measured all are alike
constexpr size_t kMostRemembered = 4096;
constexpr size_t kRememberedExtra = 64;  // beside the present candidates

double median_of_measured(const std::vector<RouteCandidate>& candidates) {
  std::vector<double> times;
  for (const RouteCandidate& candidate : candidates) {
    if (candidate.microbatch_ms > 0) times.push_back(candidate.microbatch_ms);
  }
  if (times.empty()) return kUnknownMs;
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

}  // namespace

// One that was always there finishes its next microbatch no earlier than the clock shows. Who was
// away begins as if so: at once, without credit.
double Router::start_of(MinerIndex miner, double milliseconds) const {
  const auto found = given_.find(miner);
  const double earliest = clock_ - milliseconds;
  return found == given_.end() ? earliest : std::max(found->second, earliest);
}

void Router::charge(MinerIndex miner, double milliseconds) {
  const double finish = start_of(miner, milliseconds) + milliseconds;
  given_[miner] = finish;
  clock_ = std::max(clock_, finish);
}

void Router::charge(const RouteCandidate& given) {
  charge(given.miner, given.microbatch_ms > 0 ? given.microbatch_ms : kUnknownMs);
  if (given_.size() > kMostRemembered) given_.clear();
}

MinerIndex Router::pick(const std::vector<RouteCandidate>& candidates) {
  if (candidates.empty()) return kNoMiner;
  const double unknown = median_of_measured(candidates);
  MinerIndex best = kNoMiner;
  double best_ms = 0;
  double best_finish = 0;
  for (const RouteCandidate& candidate : candidates) {
    const double ms = candidate.microbatch_ms > 0 ? candidate.microbatch_ms : unknown;
    const double finish = start_of(candidate.miner, ms) + (1 + candidate.backlog) * ms;
    if (best != kNoMiner &&
        std::tie(best_finish, best_ms, best) <= std::tie(finish, ms, candidate.miner))
      continue;
    best = candidate.miner;
    best_ms = ms;
    best_finish = finish;
  }
  charge(best, best_ms);
  forget_absent(candidates);
  return best;
}

void Router::forget_absent(const std::vector<RouteCandidate>& candidates) {
  if (given_.size() <= candidates.size() + kRememberedExtra) return;
  std::map<MinerIndex, double> present;
  for (const RouteCandidate& candidate : candidates) {
    if (const auto found = given_.find(candidate.miner); found != given_.end())
      present.insert(*found);
  }
  given_ = std::move(present);
}

bool Router::is_far_behind(const RouteCandidate& candidate,
                           const std::vector<RouteCandidate>& others) {
  if (candidate.microbatch_ms <= 0 || candidate.backlog <= 0) return false;
  const double wait = candidate.backlog * candidate.microbatch_ms;
  return std::any_of(others.begin(), others.end(), [&](const RouteCandidate& other) {
    return other.miner != candidate.miner && other.microbatch_ms > 0 &&
           wait > kFarBehind * (other.backlog + 1) * other.microbatch_ms;
  });
}

}  // namespace tessera::core
