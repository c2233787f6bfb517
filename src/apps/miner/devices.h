// The devices of a miner, from its configuration.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tessera/base/status.h"
#include "tessera/config/daemon_config.h"
#include "tessera/kernels/merge_reducer.h"
#include "tessera/model/stage_engine.h"

namespace tessera::apps {

struct MinerDevices {
  std::string first;        // the one device, or the first of the box
  model::BoxOptions box;    // without devices: there is one
  std::string description;  // what the orchestrator is told
  uint64_t memory_bytes = 0;  // that a single device would need to hold as much
};
StatusOr<MinerDevices> open_devices(const config::MinerConfig& config);

// What reduces the miner's shards of merges; null: the CPU.
StatusOr<std::unique_ptr<kernels::MergeReducer>> open_reducer(const config::MinerConfig& config, const MinerDevices& devices);

}  // namespace tessera::apps
