// From the orchestrator's state to a checkpoint and back.
#pragma once

#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// What the background thread needs, copied from the state.
struct CheckpointJob {
  uint64_t id = 0;
  ports::Checkpoint counters;                // everything but the tensors
  std::vector<Digest> stage_states;
  std::vector<Digest> local_states;          // of counters.miners, in order
};

CheckpointJob make_checkpoint_job(const core::OrchestratorState& state);

// Fetches the tensors from the blob store and writes them. Blocks.
StatusOr<std::string> write_checkpoint(ports::BlobLink& blobs, ports::CheckpointStore& checkpoints,
                                       const CheckpointJob& job);

// Puts a checkpoint's tensors into the blob store and returns the event that continues from it. `spec` may differ from the
// checkpoint's where that leaves its tensors valid (more steps, other rates); else the error names what does not fit.
StatusOr<core::RunResumed> publish_checkpoint(ports::BlobLink& blobs, const ports::Checkpoint& checkpoint,
                                              const core::RunSpec& spec, const core::DataPlan& data);

}  // namespace tessera::node
