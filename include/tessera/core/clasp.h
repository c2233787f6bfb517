// CLASP: which miners make the loss worse, from nothing but pathways (one miner a stage) and the tail's losses.
//
// Two estimators. The published one is a miner's mean loss as a z-score against its stage: (mean - stage's mean) / (stage's
// deviation / sqrt(samples)). The other is a regression,
//
//   loss = trend(time) + sum over stages of effect(stage, miner on the pathway) + noise,
//
// whose effects, weighted by samples, add up to zero in each stage: a miner's effect is what it adds to the loss compared
// with an average sample of its stage. The trend is a straight line of its own in every 64 consecutive samples, projected out
// of both sides (Frisch, Waugh, Lovell), so that a falling loss of any smooth shape leaves nothing behind. Losses further than
// 3 robust deviations from that line count as if they were 3 (Huber): one absurd loss moves nothing. Variances are the larger
// of the classical and the heteroscedasticity-consistent one, the test is one-sided (harm), and Benjamini-Hochberg over all
// miners keeps the share of false flags among the flags at the configured rate.
//
// Memory does not grow with the samples: the first 4096 are kept until the effects are known well enough to clip against,
// later ones only until their block is full. Everything else is sums. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tessera/core/statistics.h"

namespace tessera::core {

struct ClaspOptions {
  double false_positive_rate = 0.01;  // of the flags, at most this share is false
  double confidence = 0.95;           // of the intervals
  double min_effect = 0;              // flagged is only who demonstrably harms by more than this, in units of the loss
};

// Why a miner has no interval, or no flag.
enum class ClaspReason : uint8_t {
  kTested = 0,
  kAlone = 1,         // the only miner of its stage: nobody to compare it with
  kFewSamples = 2,    // fewer than Clasp::kMinSamples
  kInseparable = 3,   // always on the pathway with the same miner of another stage
};
const char* name_of(ClaspReason reason);

struct ClaspMiner {
  std::string id;
  uint32_t stage = 0;
  uint64_t samples = 0;
  double mean_loss = 0;
  double z = 0;                  // the published estimator
  std::optional<double> effect;  // and its interval: nothing if the samples cannot tell
  std::optional<double> ci_low;
  std::optional<double> ci_high;
  double p_value = 1;            // of "it harms by no more than min_effect"
  bool flagged = false;
  ClaspReason reason = ClaspReason::kTested;
};

class Clasp {
 public:
  static constexpr size_t kMaxMiners = 2048;    // over all stages: the regression's matrix has their square
  static constexpr uint64_t kMinSamples = 10;
  static constexpr double kMaxLoss = 1e6;

  explicit Clasp(ClaspOptions options) : options_(options) {}

  // In the order of time, roughly. Empty, or what is wrong with the sample, which is left out then. The first one says how
  // many stages there are.
  std::string add(const std::vector<std::string>& pathway, double loss, double time);

  uint64_t samples() const { return samples_; }
  size_t stages() const { return stages_; }
  // Of the samples so far; more may follow. Ordered by stage and id.
  std::vector<ClaspMiner> result() const;

 private:
  struct Sample {
    double loss = 0;
    double time = 0;
    std::vector<uint32_t> columns;
  };
  struct Column {
    std::string id;
    uint32_t stage = 0;
    uint64_t samples = 0;
    double loss_sum = 0;
  };
  // A straight line through a block's losses, and what is left of them.
  struct Trend {
    std::vector<double> place;     // time in the block, centred and scaled
    std::vector<double> loss;      // with what is absurd clipped
    std::vector<double> residual;  // loss without trend and effects
    double place_squares = 0;
  };
  // Sums of a block over one active column.
  struct Activity {
    double ones = 0, places = 0;                    // sum of x, of place * x
    double weighted = 0, weighted_places = 0;       // the same with the squared residuals as weights
  };

  uint32_t column_of(uint32_t stage, const std::string& id);
  void take(const std::vector<Sample>& samples, size_t begin, size_t end);
  Trend trend_of(const std::vector<Sample>& samples, size_t begin, size_t end) const;
  void project(const std::vector<Sample>& samples, size_t begin, size_t end, const Trend& trend);
  void finish_warm_up();
  void refresh_effects();
  // What the normal equations say: false while they say nothing.
  bool solve(std::vector<double>* effects, SymmetricMatrix* inverse) const;
  bool is_separable(const SymmetricMatrix& inverse, uint32_t column) const;
  void interval(const SymmetricMatrix& inverse, uint32_t column, double effect, ClaspMiner* miner) const;
  double ridge() const;

  ClaspOptions options_;
  size_t stages_ = 0;
  uint64_t samples_ = 0;
  double loss_mean_ = 0;       // of all samples, and the sum of squared deviations from it (Welford)
  double loss_squares_ = 0;
  std::vector<Column> columns_;
  std::map<std::pair<uint32_t, std::string>, uint32_t> known_;

  bool warm_ = false;          // the first samples were taken with well-known effects
  std::vector<Sample> block_;  // not taken yet; while not warm, all samples
  uint64_t taken_ = 0;
  uint64_t refresh_at_ = 0;    // samples at which the effects are computed anew
  std::vector<double> effects_;  // that residuals are computed with
  // The normal equations, the trend projected out.
  SymmetricMatrix products_;     // X'X
  std::vector<double> targets_;  // X'y
  SymmetricMatrix noise_;        // X'diag(e^2)X
  double residual_squares_ = 0;
  double degrees_used_ = 0;      // by the trends
};

}  // namespace tessera::core
