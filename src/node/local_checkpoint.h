// What a miner keeps in its folder for the process that comes after it
// (docs/formats/local-state.md):
//   stage_state.bin       the base of the stage and its outer momentum
//   local_checkpoint.bin  masters, moments and partial gradient, some steps ago
//   steps.bin             how many local steps it has done
// All of it may be missing, stale or damaged: then it is not used, and nothing fails.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/core/stage_state.h"

namespace tessera::node {

Status write_stage_copy(const std::string& directory, StageIndex stage, Epoch epoch,
                        const std::vector<float>& base, const std::vector<float>& momentum);

// Replaces the one before, atomically.
Status save_local_checkpoint(const std::string& directory, const core::LocalCheckpoint& about,
                             const core::LocalState& state);
Status note_steps(const std::string& directory, const core::StepNote& note);

struct RecoveryRequest {
  std::string run_id;
  const core::Assignment& assignment;
  core::Values base;    // of the assigned state; null: the stage begins with the run's seed
  uint64_t values = 0;  // of the stage
};
struct Recovery {
  core::Recovered about;
  std::shared_ptr<const core::LocalState> state;  // null: none
  // The seed's base and momentum, when the checkpoint goes on from them.
  core::Values base;
  std::vector<float> momentum;
  Digest base_name;
};
// A checkpoint of the assigned state itself is taken over whole. Of one of another epoch only the
// moments are: whether its steps are in the base by now is not known here. One of another run,
// stage or size is not used.
Recovery recover_local_state(const std::string& directory, const RecoveryRequest& request);

}  // namespace tessera::node
