// What must always be so of an orchestrator's state, for tests and the simulator. Nothing here changes anything.
#pragma once

#include <string>

#include "tessera/core/orchestrator.h"

namespace tessera::core {

// What is wrong with a state; empty if nothing is.
std::string broken_invariant(const OrchestratorState& state);
// The same, and whether its index is that of its state.
std::string broken_invariant(const Orchestrator& orchestrator);

// The whole state as text, one field a line: two states are equal if and only if their dumps are.
std::string dump(const OrchestratorState& state);

}  // namespace tessera::core
