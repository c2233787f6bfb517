// A whole swarm on this machine: one orchestrator and the run's miners as processes, supervised until the run is over.
#pragma once

#include <string>
#include <vector>

#include "common/daemon.h"
#include "tessera/config/run_config.h"

namespace tessera::apps {

struct SwarmOptions {
  std::string config;                  // the run's YAML
  std::vector<std::string> overrides;
  std::vector<std::string> miner_overrides;  // of every miner's own YAML
  std::string out;
  std::string resume;                  // checkpoint to go on from; "latest": OUT/checkpoint
  std::string device = "auto";
  uint32_t miners = 0;                 // processes; 0: stages x miners_per_stage
  uint32_t validators = 0;             // processes
  std::vector<std::string> validator_devices;  // in turns; none: `device`
  uint32_t threads = 0;                // compute threads of a miner; 0: the cores shared evenly, at least one
  bool json = false;                   // the summary on stdout as one line of JSON
  bool validate = true;                // evaluate the checkpoint on the validation split at the end
};

// The exit code: 0 when the run finished, 130 when it was stopped, else 1.
int run_local_swarm(const SwarmOptions& options, const StopFlags& signals);

}  // namespace tessera::apps
