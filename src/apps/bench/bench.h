// What the subcommands of tessera-bench share.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tessera/base/status.h"

namespace tessera::apps {

// Writes `result` to `path` whole or not at all; nothing for an empty path.
Status write_report(const std::string& path, const nlohmann::json& result);

// Runs a subcommand's work when the command line names it. A failure is printed and becomes the
// program's exit code 1.
void on_call(CLI::App* command, std::function<Status()> work);

// Each adds its subcommand.
void add_merge_bench(CLI::App* app);
void add_merge_peer_bench(CLI::App* app);
void add_orchestrator_bench(CLI::App* app);
#ifdef TESSERA_BENCH_TORCH
void add_step_bench(CLI::App* app);
void add_codec_bench(CLI::App* app);
void add_optimizer_bench(CLI::App* app);
void add_zero_bench(CLI::App* app);
#endif
void add_transport_bench(CLI::App* app);
void add_trust_benches(CLI::App* app);

}  // namespace tessera::apps
