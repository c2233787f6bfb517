// tessera-bench: every performance figure of the project. Each subcommand measures on the machine it
// runs on, beside the opponent or ceiling it names, prints a table and writes JSON.
#include <CLI/CLI.hpp>

#include "apps/bench/bench.h"

int main(int argc, char** argv) {
  CLI::App app("Measures Tessera's parts. Figures: docs/performance.md", "tessera-bench");
  app.set_version_flag("--version", TESSERA_VERSION);
  app.require_subcommand(1);
  tessera::apps::add_merge_bench(&app);
  tessera::apps::add_merge_peer_bench(&app);
  tessera::apps::add_orchestrator_bench(&app);
#ifdef TESSERA_BENCH_TORCH
  tessera::apps::add_step_bench(&app);
  tessera::apps::add_codec_bench(&app);
  tessera::apps::add_optimizer_bench(&app);
  tessera::apps::add_zero_bench(&app);
#endif
  tessera::apps::add_transport_bench(&app);
  tessera::apps::add_trust_benches(&app);
  CLI11_PARSE(app, argc, argv);
  return 0;
}
