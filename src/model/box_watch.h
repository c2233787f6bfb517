// A bound on every call of a box's engine: a worker that hangs must not hang the miner.
#pragma once

#include <memory>

#include "tessera/model/stage_engine.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// `engine`, whose calls fail with INTERNAL when they take longer than box.patience: the groups are aborted, which ends what
// waits for a worker. A call that goes on for a while all the same ends the process.
std::unique_ptr<ports::StageEngine> watched(std::unique_ptr<ports::StageEngine> engine, const BoxOptions& box);

}  // namespace tessera::model
