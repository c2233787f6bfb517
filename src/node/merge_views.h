// The merges of a run for people: JSON of what is complete. Nothing of a merge under way is in it but its phase.
#pragma once

#include <string>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator_state.h"

namespace tessera::node {

// `which`: empty for all that are remembered, without their matrices; else "STAGE/EPOCH".
StatusOr<std::string> merges_view(const core::OrchestratorState& state, const std::string& which);

}  // namespace tessera::node
