// A stage on a box of several GPUs: every microbatch is split among them by its sequences.
#pragma once

#include <memory>

#include "model/stage_compute.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

// Tensors in and out are on the first device.
StatusOr<std::unique_ptr<StageCompute>> make_box_stage(const core::RunSpec& spec, StageIndex stage, const BoxOptions& box,
                                                       int threads, const std::vector<float>& masters);

}  // namespace tessera::model
