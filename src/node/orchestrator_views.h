// What an orchestrator tells about itself, as JSON.
#pragma once

#include <map>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"

namespace tessera::node {

// Topics: status, miners. `loss`: the tail's recent one.
StatusOr<std::string> view(const core::OrchestratorState& state,
                           const std::map<MinerIndex, core::MinerStatus>& statuses, double loss,
                           const std::string& topic);

}  // namespace tessera::node
