// An orchestrator's whole state as text, one field a line: two states are equal if and only if
// their dumps are.
#pragma once

#include <string>

#include "tessera/core/orchestrator.h"

namespace tessera::test {

std::string dump(const core::OrchestratorState& state);

}  // namespace tessera::test
