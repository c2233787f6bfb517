// Cuts and joins the states of a run's stages anew, for other layer ranges.
#pragma once

#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/events.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/links.h"

namespace tessera::node {

struct RestageJob {
  uint64_t id = 0;
  core::RunSpec before;
  core::RunSpec after;          // the same but for pipeline.stage_layers
  std::vector<Digest> states;   // base | momentum of each stage, in the blob store
};

// Every tensor goes, base and outer momentum, from the stage that has it to the one that will. The new states are in the
// blob store afterwards. Memory: one old and one new state at a time. Blocks.
core::StagesChanged restage(ports::BlobLink& blobs, const RestageJob& job);

}  // namespace tessera::node
