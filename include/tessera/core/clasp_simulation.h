// Microbatches with known culprits, to measure what CLASP finds (tessera-bench clasp, and its tests). Pure: one seed gives
// the same samples everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/prng.h"

namespace tessera::core {

enum class ClaspNoise : uint8_t {
  kNormal = 0,
  kStudent = 1,    // of 3 degrees of freedom, scaled to the deviation: heavy tails
  kLognormal = 2,  // skewed, centred and scaled to the deviation
  kSpikes = 3,     // normal, and one in 200 samples 25 deviations higher
};

struct ClaspScenario {
  uint32_t stages = 5;
  uint32_t miners_per_stage = 5;
  uint64_t samples = 5000;
  double loss = 4.5;          // at the end
  double loss_fall = 0;       // how much higher it is at the beginning; falls exponentially, five time constants long
  double deviation = 0.2;
  ClaspNoise noise = ClaspNoise::kNormal;
  double harm = 0.1;          // a bad miner raises mean and deviation by this share
  std::vector<std::pair<uint32_t, uint32_t>> bad = {{2, 3}};  // stage, miner
  uint64_t seed = 1;
};

struct ClaspSimulatedSample {
  std::vector<std::string> pathway;  // "s2m3"
  double loss = 0;
  double time = 0;
};

class ClaspSimulation {
 public:
  explicit ClaspSimulation(ClaspScenario scenario);
  // One after the other, `samples` of them.
  ClaspSimulatedSample next();
  bool is_bad(uint32_t stage, const std::string& id) const;

 private:
  double normal();
  double noise();
  const ClaspScenario scenario_;
  Prng prng_;
  uint64_t made_ = 0;
};

}  // namespace tessera::core
