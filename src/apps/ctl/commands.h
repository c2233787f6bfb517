// The commands of tesseractl. Each registers its flags and returns nothing; the chosen one sets `run`.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace tessera::apps {

// What the chosen subcommand does; its value is the exit code.
using Action = std::function<int()>;

void add_config_commands(CLI::App& app, Action& action);
void add_data_commands(CLI::App& app, Action& action);
void add_checkpoint_commands(CLI::App& app, Action& action);
void add_clasp_commands(CLI::App& app, Action& action);
void add_ledger_commands(CLI::App& app, Action& action);
void add_rewards_commands(CLI::App& app, Action& action);
void add_trace_commands(CLI::App& app, Action& action);
void add_plan_commands(CLI::App& app, Action& action);
void add_run_commands(CLI::App& app, Action& action);
void add_swarm_commands(CLI::App& app, Action& action);

}  // namespace tessera::apps
