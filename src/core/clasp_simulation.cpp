#include "tessera/core/clasp_simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tessera::core {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kTimeConstants = 5;
constexpr double kSpikeShare = 0.005;
constexpr double kSpikeDeviations = 25;
constexpr double kLogDeviation = 0.75;  // of the lognormal's logarithm

std::string name_of_miner(uint32_t stage, uint32_t miner) { return fmt::format("s{}m{}", stage, miner); }

}  // namespace

ClaspSimulation::ClaspSimulation(ClaspScenario scenario)
    : scenario_(std::move(scenario)), prng_(mix64(scenario_.seed) ^ 0x434c415350ull) {}

// Box and Muller (1958).
double ClaspSimulation::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - prng_.uniform()));
  return radius * std::cos(2 * kPi * prng_.uniform());
}

double ClaspSimulation::noise() {
  switch (scenario_.noise) {
    case ClaspNoise::kNormal:
      return normal();
    case ClaspNoise::kStudent: {
      const double top = normal();
      const double a = normal();
      const double b = normal();
      const double c = normal();
      return top / std::sqrt((a * a + b * b + c * c) / 3) / std::sqrt(3.0);  // its variance is 3
    }
    case ClaspNoise::kLognormal: {
      const double variance = kLogDeviation * kLogDeviation;
      const double mean = std::exp(variance / 2);
      return (std::exp(kLogDeviation * normal()) - mean) / (mean * std::sqrt(std::exp(variance) - 1));
    }
    case ClaspNoise::kSpikes: {
      const double spike = prng_.uniform() < kSpikeShare ? kSpikeDeviations : 0;
      return normal() + spike;
    }
  }
  return 0;
}

ClaspSimulatedSample ClaspSimulation::next() {
  ClaspSimulatedSample sample;
  double factor = 1;
  for (uint32_t stage = 0; stage < scenario_.stages; ++stage) {
    const auto miner = static_cast<uint32_t>(prng_.below(scenario_.miners_per_stage));
    sample.pathway.push_back(name_of_miner(stage, miner));
    const bool bad = std::find(scenario_.bad.begin(), scenario_.bad.end(), std::pair(stage, miner)) != scenario_.bad.end();
    if (bad) factor *= 1 + scenario_.harm;
  }
  const double progress = static_cast<double>(made_) / static_cast<double>(std::max<uint64_t>(1, scenario_.samples));
  const double mean = scenario_.loss + scenario_.loss_fall * std::exp(-kTimeConstants * progress);
  sample.loss = factor * (mean + scenario_.deviation * noise());
  sample.time = static_cast<double>(made_++);
  return sample;
}

bool ClaspSimulation::is_bad(uint32_t stage, const std::string& id) const {
  return std::any_of(scenario_.bad.begin(), scenario_.bad.end(),
                     [&](const auto& bad) { return bad.first == stage && name_of_miner(bad.first, bad.second) == id; });
}

}  // namespace tessera::core
