// A stage engine that takes its time: for tests on machines whose processes would otherwise get
// each other's share, and for operators who want to leave a machine to others.
#pragma once

#include <cstdint>
#include <memory>

#include "tessera/ports/stage_engine.h"

namespace tessera::apps {

// Forwards and backwards of `engine`, each at least `pace_ms` long; the thread sleeps for the rest.
// The input gradient of a backward comes early all the same. 0: `engine` itself.
std::unique_ptr<ports::StageEngine> paced(std::unique_ptr<ports::StageEngine> engine,
                                          uint32_t pace_ms);

}  // namespace tessera::apps
