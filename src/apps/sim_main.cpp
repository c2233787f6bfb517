// tessera-sim: a swarm in one process, over simulated clock, network and compute.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>

#include "common/daemon.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/sim/simulation.h"

namespace tessera::apps {
namespace {

struct Flags {
  std::string scenario;
  std::vector<std::string> overrides;
  std::optional<uint64_t> seed;
  std::string trace;
  std::string json;
};

// Says on stderr, every few seconds, how far it is.
std::function<void(const sim::Progress&)> progress_on_stderr() {
  const auto begin = std::chrono::steady_clock::now();
  return [begin, said = begin](const sim::Progress& progress) mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - said < std::chrono::seconds(5)) return;
    said = now;
    std::fprintf(stderr, "%6.0f s: simulated %.0f of %.0f s, %llu tokens, %llu events\n",
                 std::chrono::duration<double>(now - begin).count(), progress.simulated_s,
                 progress.duration_s, static_cast<unsigned long long>(progress.tokens),
                 static_cast<unsigned long long>(progress.events));
  };
}

Status simulate(const Flags& flags, StopFlags& signals) {
  std::vector<std::string> overrides = flags.overrides;
  if (flags.seed) overrides.push_back("sim.seed=" + std::to_string(*flags.seed));
  TESSERA_ASSIGN_OR_RETURN(const config::Scenario scenario,
                           config::load_scenario(flags.scenario, overrides));
  spdlog::set_level(
      spdlog::level::off);  // thousands of daemons talk at once; the trace says what they do
  TESSERA_ASSIGN_OR_RETURN(const auto simulation, sim::Simulation::create(scenario, flags.trace));
  TESSERA_RETURN_IF_ERROR(simulation->run(signals.stop, progress_on_stderr()));
  TESSERA_ASSIGN_OR_RETURN(const sim::Result result, simulation->result());
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(write_file_atomic(flags.json, result.to_json()));
  std::fputs(result.to_text().c_str(), stdout);
  if (!result.problem.empty()) return data_loss("what must never be was: {}", result.problem);
  return ok_status();
}

}  // namespace
}  // namespace tessera::apps

int main(int argc, char** argv) {
  using namespace tessera::apps;
  CLI::App app(
      "Runs the code of orchestrator and miners over a simulated clock, network and compute.");
  Flags flags;
  app.set_version_flag("--version", version());
  app.add_option("scenario", flags.scenario, "The scenario's YAML")->required();
  app.add_option("--set", flags.overrides, "key=value over a key of the scenario")
      ->allow_extra_args(false);
  app.add_option("--seed", flags.seed, "Over sim.seed");
  app.add_option("--trace", flags.trace, "Write every event to this file, a line each");
  app.add_option("--json", flags.json, "Write the figures to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const tessera::Status status = simulate(flags, catch_signals());
  return status.ok() ? kExitOk : fail("tessera-sim", status);
}
