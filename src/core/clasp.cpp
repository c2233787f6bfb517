// What CLASP does with a sample; what the sums say is in clasp_result.cpp.
#include "tessera/core/clasp.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tessera::core {
namespace {

constexpr size_t kBlock = 64;          // samples that share a trend line
constexpr size_t kWarmUp = 64 * kBlock;
constexpr size_t kSmallestBlock = 8;   // a line through fewer leaves too little
constexpr int kWarmUpPasses = 3;
constexpr int kTrendPasses = 5;
constexpr double kClipDeviations = 3;
constexpr double kDeviationOfMad = 1.4826;  // of a normal distribution
constexpr double kGreatestLeverage = 0.5;
constexpr double kRefreshGrowth = 1.25;
constexpr size_t kMaxIdBytes = 256;

}  // namespace

const char* name_of(ClaspReason reason) {
  switch (reason) {
    case ClaspReason::kTested: return "tested";
    case ClaspReason::kAlone: return "the only miner of its stage";
    case ClaspReason::kFewSamples: return "too few samples";
    case ClaspReason::kInseparable: return "always with the same miner of another stage";
  }
  return "unknown";
}

std::string Clasp::add(const std::vector<std::string>& pathway, double loss, double time) {
  if (pathway.empty()) return "the pathway is empty: give one miner for each stage";
  if (stages_ != 0 && pathway.size() != stages_) {
    return fmt::format("a pathway of {} miners where those before have {}: give one miner for each stage, of one run",
                       pathway.size(), stages_);
  }
  if (!std::isfinite(loss) || std::abs(loss) > kMaxLoss) {
    return fmt::format("a loss of {}: leave out microbatches without a finite loss of at most {}", loss, kMaxLoss);
  }
  if (!std::isfinite(time)) return "the time is not a finite number: give seconds since any moment";
  size_t unknown = 0;
  for (uint32_t stage = 0; stage < pathway.size(); ++stage) {
    if (pathway[stage].empty() || pathway[stage].size() > kMaxIdBytes) {
      return fmt::format("the miner of stage {} has a name of {} bytes: give 1 to {}", stage, pathway[stage].size(),
                         kMaxIdBytes);
    }
    unknown += known_.count({stage, pathway[stage]}) == 0;
  }
  if (columns_.size() + unknown > kMaxMiners) {
    return fmt::format("more than {} miners: analyse fewer stages, or a shorter time, at once", kMaxMiners);
  }
  stages_ = pathway.size();
  samples_++;
  const double before = loss - loss_mean_;
  loss_mean_ += before / static_cast<double>(samples_);
  loss_squares_ += before * (loss - loss_mean_);
  Sample sample{.loss = loss, .time = time, .columns = {}};
  for (uint32_t stage = 0; stage < stages_; ++stage) {
    const uint32_t column = column_of(stage, pathway[stage]);
    columns_[column].samples++;
    columns_[column].loss_sum += loss;
    sample.columns.push_back(column);
  }
  block_.push_back(std::move(sample));
  if (!warm_ && block_.size() == kWarmUp) {
    finish_warm_up();
    block_.clear();
  } else if (warm_ && block_.size() == kBlock) {
    take(block_, 0, block_.size());
    block_.clear();
    if (taken_ >= refresh_at_) refresh_effects();
  }
  return "";
}

uint32_t Clasp::column_of(uint32_t stage, const std::string& id) {
  const auto [entry, is_new] = known_.emplace(std::pair(stage, id), static_cast<uint32_t>(columns_.size()));
  if (is_new) {
    columns_.push_back({.id = id, .stage = stage});
    products_.resize(columns_.size());
    noise_.resize(columns_.size());
    targets_.resize(columns_.size());
    effects_.resize(columns_.size());
  }
  return entry->second;
}

// Several passes over the first samples: each knows the effects better, so that it clips and weighs better.
void Clasp::finish_warm_up() {
  for (int pass = 0; pass < kWarmUpPasses; ++pass) {
    products_.clear();
    noise_.clear();
    std::fill(targets_.begin(), targets_.end(), 0.0);
    residual_squares_ = degrees_used_ = 0;
    taken_ = 0;
    for (size_t begin = 0; begin < block_.size();) {
      const size_t left = block_.size() - begin;
      const size_t end = left < kBlock + kBlock / 2 ? block_.size() : begin + kBlock;
      take(block_, begin, end);
      begin = end;
    }
    refresh_effects();
  }
  warm_ = true;
}

void Clasp::refresh_effects() {
  SymmetricMatrix inverse;
  solve(&effects_, &inverse);
  refresh_at_ = static_cast<uint64_t>(static_cast<double>(taken_) * kRefreshGrowth) + kBlock;
}

// The line by least squares on clipped values, from the median on: what is absurd pulls neither line nor deviation.
Clasp::Trend Clasp::trend_of(const std::vector<Sample>& samples, size_t begin, size_t end) const {
  const size_t count = end - begin;
  const auto n = static_cast<double>(count);
  Trend trend;
  double mean_time = 0;
  double spread = 0;
  for (size_t i = begin; i < end; ++i) mean_time += samples[i].time / n;
  for (size_t i = begin; i < end; ++i) spread = std::max(spread, std::abs(samples[i].time - mean_time));
  std::vector<double> adjusted(count);  // the loss without the effects of its miners
  for (size_t i = 0; i < count; ++i) {
    const Sample& sample = samples[begin + i];
    trend.place.push_back(spread > 0 ? (sample.time - mean_time) / spread : 0.0);
    trend.place_squares += trend.place[i] * trend.place[i];
    adjusted[i] = sample.loss;
    for (const uint32_t column : sample.columns) adjusted[i] -= effects_[column];
  }
  std::vector<double> scratch = adjusted;
  double level = median_of(scratch);
  double slope = 0;
  trend.residual.resize(count);
  for (int pass = 0; pass < kTrendPasses; ++pass) {
    scratch.clear();
    for (size_t i = 0; i < count; ++i) scratch.push_back(std::abs(adjusted[i] - level - slope * trend.place[i]));
    const double limit = kClipDeviations * kDeviationOfMad * median_of(scratch);
    double sum = 0;
    double place_sum = 0;
    for (size_t i = 0; i < count; ++i) {
      double& residual = trend.residual[i];
      residual = adjusted[i] - level - slope * trend.place[i];
      if (limit > 0) residual = std::clamp(residual, -limit, limit);
      sum += residual;
      place_sum += residual * trend.place[i];
    }
    level += sum / n;
    if (trend.place_squares > 0) slope += place_sum / trend.place_squares;
  }
  for (size_t i = 0; i < count; ++i) {
    const double excess = adjusted[i] - level - slope * trend.place[i] - trend.residual[i];
    trend.loss.push_back(samples[begin + i].loss - excess);
  }
  return trend;
}

void Clasp::take(const std::vector<Sample>& samples, size_t begin, size_t end) {
  if (end - begin < kSmallestBlock) return;
  const Trend trend = trend_of(samples, begin, end);
  project(samples, begin, end, trend);
  taken_ += end - begin;
  degrees_used_ += trend.place_squares > 0 ? 2 : 1;
}

// Adds the block to the normal equations: X'MX, X'My and X'M diag(e^2) MX, M = what is left of a vector when its line is
// taken out. X has a 1 for each miner of the pathway, so that the first terms are sparse and only the corrections touch
// every pair of miners that are active in the block.
void Clasp::project(const std::vector<Sample>& samples, size_t begin, size_t end, const Trend& trend) {
  const auto n = static_cast<double>(end - begin);
  const double squares = trend.place_squares > 0 ? trend.place_squares : 1;
  const double trend_factor = n / (n - 2);  // residuals of a fitted line are too small by that
  std::map<uint32_t, Activity> active;
  Activity total;  // as of a column of ones; its places are 0: they are centred
  double weighted_squares = 0;
  double loss_sum = 0;
  double loss_places = 0;
  for (size_t i = 0; i < end - begin; ++i) {
    const Sample& sample = samples[begin + i];
    const double place = trend.place[i];
    double leverage = 0;
    for (const uint32_t column : sample.columns) leverage += 1 / static_cast<double>(columns_[column].samples);
    // While not warm the effects were fitted to this very sample.
    const double own = warm_ ? 1 : 1 - std::min(leverage, kGreatestLeverage);
    const double square = trend.residual[i] * trend.residual[i];
    const double weight = square * trend_factor / (own * own);
    residual_squares_ += square;
    total.weighted += weight;
    total.weighted_places += weight * place;
    weighted_squares += weight * place * place;
    loss_sum += trend.loss[i];
    loss_places += trend.loss[i] * place;
    for (const uint32_t a : sample.columns) {
      Activity& activity = active[a];
      activity.ones += 1;
      activity.places += place;
      activity.weighted += weight;
      activity.weighted_places += weight * place;
      targets_[a] += trend.loss[i];
      for (const uint32_t b : sample.columns) {
        products_.at(a, b) += 1;
        noise_.at(a, b) += weight;
      }
    }
  }
  for (const auto& [a, of_a] : active) {
    const double mean_a = of_a.ones / n;
    const double slope_a = of_a.places / squares;
    targets_[a] -= mean_a * loss_sum + slope_a * loss_places;
    for (const auto& [b, of_b] : active) {
      const double mean_b = of_b.ones / n;
      const double slope_b = of_b.places / squares;
      products_.at(a, b) -= mean_a * of_b.ones + slope_a * of_b.places;
      noise_.at(a, b) += total.weighted * mean_a * mean_b - of_a.weighted * mean_b - mean_a * of_b.weighted +
                         weighted_squares * slope_a * slope_b - of_a.weighted_places * slope_b -
                         slope_a * of_b.weighted_places + total.weighted_places * (mean_a * slope_b + slope_a * mean_b);
    }
  }
}

}  // namespace tessera::core
