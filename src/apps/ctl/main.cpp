// tesseractl: administration of runs, data, checkpoints and the local swarm.
#include "commands.h"
#include "common/daemon.h"

int main(int argc, char** argv) {
  using namespace tessera::apps;
  CLI::App app("Administers Tessera: runs, data, checkpoints, and a whole swarm on this machine.");
  app.set_version_flag("--version", version());
  app.require_subcommand(1);
  Action action;
  add_config_commands(app, action);
  add_data_commands(app, action);
  add_checkpoint_commands(app, action);
  add_plan_commands(app, action);
  add_run_commands(app, action);
  add_swarm_commands(app, action);
  add_ledger_commands(app, action);
  add_trace_commands(app, action);
  add_clasp_commands(app, action);
  add_rewards_commands(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return action ? action() : kExitUsage;
}
