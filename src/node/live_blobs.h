// What of the blob store a run still needs.
#pragma once

#include <set>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// The objects the state names: training data, stage states, running and past merges, checkpoints being written.
std::vector<Digest> live_objects(const core::OrchestratorState& state);

// Their manifests and chunks. An object whose manifest is not there (yet) is left out.
std::set<Digest> blobs_of(ports::BlobLink& blobs, const std::vector<Digest>& objects);

}  // namespace tessera::node
