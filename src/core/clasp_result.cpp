// What CLASP's sums say: effects, intervals, flags.
#include <algorithm>
#include <cmath>

#include "tessera/core/clasp.h"

namespace tessera::core {
namespace {

constexpr double kRidge = 1e-8;         // of the largest diagonal: against directions that the samples say nothing about
constexpr double kWellDetermined = 0.9; // share of an effect that comes from samples and not from the ridge
constexpr double kRounding = 1e-9;      // of the losses: an effect below that is none

}  // namespace

double Clasp::ridge() const {
  double largest = 0;
  for (size_t i = 0; i < products_.size(); ++i) largest = std::max(largest, products_.at(i, i));
  return kRidge * largest;
}

// (X'X + constraints + ridge) effects = X'y. X'X does not see a constant added to a whole stage; the constraint of each stage,
// as a penalty that can be met exactly, sets the effects' mean over its samples to zero.
bool Clasp::solve(std::vector<double>* effects, SymmetricMatrix* inverse) const {
  const double small = ridge();
  if (!(small > 0)) return false;
  const size_t count = columns_.size();
  SymmetricMatrix equations = products_;
  std::vector<double> squares(stages_, 0.0);
  for (const Column& column : columns_) {
    squares[column.stage] += static_cast<double>(column.samples) * static_cast<double>(column.samples);
  }
  for (size_t i = 0; i < count; ++i) {
    equations.at(i, i) += small;
    for (size_t j = 0; j < count; ++j) {
      if (columns_[i].stage != columns_[j].stage) continue;
      equations.at(i, j) += small / kRidge * static_cast<double>(columns_[i].samples) *
                            static_cast<double>(columns_[j].samples) / squares[columns_[i].stage];
    }
  }
  if (!invert(equations, inverse)) return false;
  for (size_t i = 0; i < count; ++i) {
    double value = 0;
    for (size_t j = 0; j < count; ++j) value += inverse->at(i, j) * targets_[j];
    (*effects)[i] = value;
  }
  return true;
}

bool Clasp::is_separable(const SymmetricMatrix& inverse, uint32_t column) const {
  return 1 - ridge() * inverse.at(column, column) >= kWellDetermined;
}

// The sandwich for one effect: row' (X'X) row * deviation^2, or row' X'diag(e^2)X row, whichever is larger.
void Clasp::interval(const SymmetricMatrix& inverse, uint32_t column, double effect, ClaspMiner* miner) const {
  const size_t count = columns_.size();
  const double degrees = static_cast<double>(taken_) - degrees_used_ - static_cast<double>(count - stages_);
  if (degrees < 1) {
    miner->reason = ClaspReason::kFewSamples;
    return;
  }
  double classical = 0;
  double consistent = 0;
  for (size_t i = 0; i < count; ++i) {
    double of_products = 0;
    double of_noise = 0;
    for (size_t j = 0; j < count; ++j) {
      of_products += products_.at(i, j) * inverse.at(j, column);
      of_noise += noise_.at(i, j) * inverse.at(j, column);
    }
    classical += inverse.at(i, column) * of_products;
    consistent += inverse.at(i, column) * of_noise;
  }
  classical *= residual_squares_ / degrees;
  const double deviation = std::sqrt(std::max({classical, consistent, 0.0}));
  const double own_degrees = std::min(degrees, std::max(1.0, static_cast<double>(miner->samples) - 1));
  const double width = deviation * student_quantile((1 - options_.confidence) / 2, own_degrees);
  const double nothing = kRounding * std::max(std::abs(loss_mean_), 1e-12);
  miner->effect = std::abs(effect) < nothing ? 0.0 : effect;
  miner->ci_low = *miner->effect - width;
  miner->ci_high = *miner->effect + width;
  const double excess = *miner->effect - options_.min_effect;
  miner->p_value = deviation > 0    ? student_upper_tail(excess / deviation, own_degrees)
                   : excess > nothing ? 0.0
                                      : 1.0;
  if (miner->samples < kMinSamples) {
    miner->reason = ClaspReason::kFewSamples;
    miner->p_value = 1;
  }
}

std::vector<ClaspMiner> Clasp::result() const {
  Clasp finished = *this;
  if (!finished.warm_) {
    finished.finish_warm_up();
  } else {
    finished.take(finished.block_, 0, finished.block_.size());
  }
  std::vector<double> effects(columns_.size(), 0.0);
  SymmetricMatrix inverse;
  const bool solved = finished.solve(&effects, &inverse);
  std::vector<size_t> of_stage(stages_, 0);
  for (const Column& column : columns_) of_stage[column.stage]++;
  const double deviation = samples_ > 1 ? std::sqrt(loss_squares_ / static_cast<double>(samples_ - 1)) : 0;

  std::vector<ClaspMiner> miners;
  std::vector<double> p_values;
  std::vector<size_t> tested;
  for (const auto& [key, c] : known_) {
    const Column& column = columns_[c];
    ClaspMiner miner;
    miner.id = column.id;
    miner.stage = column.stage;
    miner.samples = column.samples;
    const auto n = static_cast<double>(column.samples);
    miner.mean_loss = column.loss_sum / n;
    if (deviation > 0) miner.z = (miner.mean_loss - loss_mean_) / (deviation / std::sqrt(n));
    if (of_stage[column.stage] == 1) {
      miner.z = 0;
      miner.reason = ClaspReason::kAlone;
    } else if (!solved) {
      miner.reason = ClaspReason::kFewSamples;
    } else if (!finished.is_separable(inverse, c)) {
      miner.reason = ClaspReason::kInseparable;
    } else {
      finished.interval(inverse, c, effects[c], &miner);
    }
    if (miner.reason == ClaspReason::kTested) {
      tested.push_back(miners.size());
      p_values.push_back(miner.p_value);
    }
    miners.push_back(std::move(miner));
  }
  const std::vector<bool> flags = discoveries(p_values, options_.false_positive_rate);
  for (size_t i = 0; i < tested.size(); ++i) miners[tested[i]].flagged = flags[i];
  return miners;
}

}  // namespace tessera::core
