// Where an orchestrator keeps checkpoints. The product writes folders of safetensors (src/store/checkpoint.cpp); tests keep
// them in memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/events.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_state.h"

namespace tessera::ports {

struct CheckpointStage {
  Epoch epoch = 0;
  uint64_t merges = 0;
  std::vector<float> weights;    // the model: the base, or with merges off a replica's masters
  std::vector<float> base;
  std::vector<float> momentum;   // outer
};
struct CheckpointMiner {
  NodeId node;
  StageIndex stage = 0;
  uint64_t schedule_step = 0;
  uint64_t local_steps = 0;
  uint32_t fresh = 0;            // counted microbatches since its last merge
  core::LocalState state;
};
struct Checkpoint {
  std::string run_id;
  core::RunSpec spec;
  core::DataPlan data;
  uint64_t next_microbatch = 0;
  uint64_t done = 0;
  std::vector<core::OpenAtCheckpoint> open;
  std::vector<CheckpointStage> stages;
  std::vector<CheckpointMiner> miners;
};

class CheckpointStore {
 public:
  virtual ~CheckpointStore() = default;
  // Written whole or not at all; returns where it lies. Older ones beyond spec.checkpoint.keep are removed afterwards.
  virtual StatusOr<std::string> write(const Checkpoint& checkpoint) = 0;
};

}  // namespace tessera::ports
