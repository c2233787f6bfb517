// clasp: what CLASP finds of known culprits, and whom it accuses wrongly. rewards: how steady scores are, and what leaving,
// joining and slow miners get. Both simulate with one seed: the same figures everywhere.
#include <cmath>
#include <cstdio>
#include <memory>

#include "apps/bench/bench.h"
#include "tessera/base/prng.h"
#include "tessera/core/clasp.h"
#include "tessera/core/clasp_simulation.h"
#include "tessera/core/rewards.h"

namespace tessera::apps {
namespace {

struct ClaspBench {
  uint32_t effort = 100;  // per cent of the runs
  std::string json;
};

struct Condition {
  const char* name;
  core::ClaspNoise noise;
  double loss_fall;
  std::vector<std::pair<uint32_t, uint32_t>> bad;
};

const std::vector<Condition>& conditions() {
  static const std::vector<Condition> list = {
      {"steady loss, normal noise", core::ClaspNoise::kNormal, 0, {{2, 3}}},
      {"falling loss, normal noise", core::ClaspNoise::kNormal, 4, {{2, 3}}},
      {"falling loss, Student's t (3)", core::ClaspNoise::kStudent, 4, {{2, 3}}},
      {"falling loss, lognormal noise", core::ClaspNoise::kLognormal, 4, {{2, 3}}},
      {"falling loss, spikes", core::ClaspNoise::kSpikes, 4, {{2, 3}}},
      {"falling loss, two bad in one stage", core::ClaspNoise::kNormal, 4, {{2, 3}, {2, 0}}},
      {"falling loss, two bad in two stages", core::ClaspNoise::kNormal, 4, {{2, 3}, {4, 1}}},
  };
  return list;
}

// Runs of one scenario: p-values and z-scores of the bad and of the honest, and what was flagged.
nlohmann::json measure(const Condition& condition, double harm, uint64_t samples, uint32_t runs, uint64_t seed) {
  nlohmann::json bad_p = nlohmann::json::array();
  nlohmann::json honest_p = nlohmann::json::array();
  nlohmann::json bad_z = nlohmann::json::array();
  nlohmann::json honest_z = nlohmann::json::array();
  uint32_t found = 0;
  uint32_t false_flags = 0;
  uint32_t false_runs = 0;
  for (uint32_t run = 0; run < runs; ++run) {
    core::ClaspScenario scenario;
    scenario.samples = samples;
    scenario.loss_fall = condition.loss_fall;
    scenario.noise = condition.noise;
    scenario.harm = harm;
    scenario.bad = condition.bad;
    scenario.seed = seed + run;
    core::ClaspSimulation simulation(scenario);
    core::Clasp clasp({});
    for (uint64_t i = 0; i < samples; ++i) {
      const core::ClaspSimulatedSample sample = simulation.next();
      clasp.add(sample.pathway, sample.loss, sample.time);
    }
    uint32_t wrong = 0;
    for (const core::ClaspMiner& miner : clasp.result()) {
      const bool bad = harm > 0 && simulation.is_bad(miner.stage, miner.id);
      (bad ? bad_p : honest_p).push_back(miner.p_value);
      (bad ? bad_z : honest_z).push_back(miner.z);
      if (miner.flagged) (bad ? found : wrong)++;
    }
    false_flags += wrong;
    false_runs += wrong > 0;
  }
  return {{"condition", condition.name}, {"harm", harm},
          {"samples", samples},          {"runs", runs},
          {"bad", harm > 0 ? runs * condition.bad.size() : 0}, {"found", found},
          {"false_flags", false_flags},  {"false_runs", false_runs},
          {"bad_p", bad_p},              {"honest_p", honest_p},
          {"bad_z", bad_z},              {"honest_z", honest_z}};
}

Status run_clasp_bench(const ClaspBench& options) {
  const std::vector<std::pair<uint64_t, uint32_t>> sizes = {{500, 100}, {5000, 30}, {50000, 8}};
  nlohmann::json results = nlohmann::json::array();
  uint64_t seed = 1;  // no two cells share a run: a chance flag stays in one of them
  std::printf("%-38s %5s %8s %5s %10s %12s\n", "condition", "harm", "samples", "runs", "found", "false flags");
  for (const Condition& condition : conditions()) {
    for (const double harm : {0.0, 0.01, 0.02, 0.05, 0.10}) {
      for (const auto& [samples, full] : sizes) {
        const uint32_t runs = std::max<uint32_t>(1, full * options.effort / 100);
        nlohmann::json result = measure(condition, harm, samples, runs, seed);
        seed += runs;
        std::printf("%-38s %4.0f%% %8lu %5u %4u of %4u %12u\n", condition.name, 100 * harm, samples, runs,
                    result["found"].get<uint32_t>(), result["bad"].get<uint32_t>(), result["false_flags"].get<uint32_t>());
        std::fflush(stdout);
        results.push_back(std::move(result));
      }
    }
  }
  return write_report(options.json, {{"clasp", results}});
}

constexpr double kMsPerHour = 3'600'000;
constexpr double kHours = 96;        // simulated; the second half is measured
constexpr double kRate = 240;        // microbatches an hour of an ordinary miner
constexpr double kLeaves = 48;
constexpr double kJoins = 48;
constexpr double kReached = 0.9;     // of its steady weight: a joiner has arrived

// Knuth's Poisson numbers in pieces, for means that would underflow.
uint64_t poisson(Prng& prng, double mean) {
  uint64_t count = 0;
  while (mean > 0) {
    const double piece = std::min(mean, 20.0);
    mean -= piece;
    const double limit = std::exp(-piece);
    for (double product = prng.uniform(); product > limit; product *= prng.uniform()) count++;
  }
  return count;
}

// Miners 0 to 7 are ordinary, 8 is half as fast, 9 leaves and 10 joins half way. Work counts from the sync (the merge) that
// validates it on, with the age it has then.
nlohmann::json measure_rewards(const core::RewardRules& rules, double syncs_per_hour) {
  constexpr size_t kMiners = 11;
  Prng prng(7);
  const auto syncs = static_cast<size_t>(kHours * syncs_per_hour);
  std::vector<std::vector<double>> weights(kMiners);  // at each sync
  std::vector<std::vector<uint64_t>> work(kMiners);
  const auto at = [&](size_t sync) { return static_cast<double>(sync + 1) / syncs_per_hour; };
  for (size_t sync = 0; sync < syncs; ++sync) {
    double total = 0;
    std::vector<double> scores(kMiners, 0.0);
    for (size_t miner = 0; miner < kMiners; ++miner) {
      const bool away = (miner == 9 && at(sync) > kLeaves) || (miner == 10 && at(sync) <= kJoins);
      const double rate = away ? 0 : miner == 8 ? kRate / 2 : kRate;
      work[miner].push_back(poisson(prng, rate / syncs_per_hour));
      for (size_t past = 0; past <= sync; ++past) {
        const auto age = static_cast<TimeMs>((at(sync) - at(past)) * kMsPerHour);
        scores[miner] += static_cast<double>(work[miner][past]) * rules.weight(age);
      }
      total += scores[miner];
    }
    for (size_t miner = 0; miner < kMiners; ++miner) weights[miner].push_back(total > 0 ? scores[miner] / total : 0);
  }
  double mean = 0;
  double squares = 0;
  double slow = 0;
  double ordinary = 0;
  size_t measured = 0;
  double joined = 0;
  double left = 0;
  const double steady = weights[0].back();
  for (size_t sync = 0; sync < syncs; ++sync) {
    if (at(sync) > kJoins && joined == 0 && weights[10][sync] >= kReached * steady) joined = at(sync) - kJoins;
    if (at(sync) > kLeaves && weights[9][sync] > (1 - kReached) * steady) left = at(sync) - kLeaves;
    if (at(sync) <= kHours / 2 || at(sync) > kHours) continue;
    const double weight = weights[0][sync] / (weights[1][sync] + weights[2][sync] + weights[3][sync]) * 3;
    mean += weight;
    squares += weight * weight;
    slow += weights[8][sync];
    ordinary += weights[0][sync];
    measured++;
  }
  mean /= static_cast<double>(measured);
  const double variance = std::max(0.0, squares / static_cast<double>(measured) - mean * mean);
  nlohmann::json value = {{"syncs_per_hour", syncs_per_hour},
                          {"deviation", std::sqrt(variance) / mean},
                          {"slow_share", slow / ordinary},
                          {"hours_until_joined", joined},
                          {"hours_paid_after_leaving", left}};
  value[rules.half_life_h > 0 ? "half_life_h" : "window_h"] = rules.half_life_h > 0 ? rules.half_life_h : rules.window_h;
  return value;
}

Status run_rewards_bench(const std::string& json) {
  nlohmann::json results = nlohmann::json::array();
  std::printf("%-16s %9s %10s %6s %8s %8s\n", "weight of age", "syncs/h", "deviation", "slow", "joined", "left");
  for (const double hours : {2.0, 5.0, 10.0, 24.0}) {
    for (const bool exponential : {false, true}) {
      core::RewardRules rules;
      rules.window_h = hours;
      if (exponential) rules.half_life_h = hours / 2;  // the same mean age as the window has
      for (const double syncs : {0.5, 1.0, 4.0, 12.0}) {
        const nlohmann::json result = measure_rewards(rules, syncs);
        std::printf("%-9s %4.1f h  %9.1f %9.2f%% %6.3f %6.1f h %6.1f h\n", exponential ? "half-life" : "window",
                    exponential ? rules.half_life_h : hours, syncs, 100 * result["deviation"].get<double>(),
                    result["slow_share"].get<double>(), result["hours_until_joined"].get<double>(),
                    result["hours_paid_after_leaving"].get<double>());
        results.push_back(result);
      }
    }
  }
  return write_report(json, {{"rewards", results}});
}

}  // namespace

void add_trust_benches(CLI::App* app) {
  CLI::App* clasp = app->add_subcommand("clasp", "CLASP: culprits found and honest miners accused, by harm, samples and noise");
  const auto options = std::make_shared<ClaspBench>();
  clasp->add_option("--effort", options->effort, "Per cent of the usual runs")->check(CLI::Range(1, 10000))->capture_default_str();
  clasp->add_option("--json", options->json, "Write every p-value and z-score there");
  on_call(clasp, [options] { return run_clasp_bench(*options); });
  CLI::App* rewards = app->add_subcommand("rewards", "Scores: how steady they are, and what leaving, joining, slow miners get");
  const auto path = std::make_shared<std::string>();
  rewards->add_option("--json", *path, "Write the table there");
  on_call(rewards, [path] { return run_rewards_bench(*path); });
}

}  // namespace tessera::apps
