// The safetensors files of a checkpoint folder.
#pragma once

#include <string>

#include "store/checkpoint_manifest.h"
#include "tessera/base/status.h"
#include "tessera/ports/checkpoint_store.h"

namespace tessera::store {

// Every vector has the size that the run's specification gives it. INVALID_ARGUMENT names the one
// that has not.
Status check_values(const ports::Checkpoint& checkpoint);

// Writes every tensor file of a checked checkpoint into `folder`, flushed, and says what it wrote.
StatusOr<CheckpointManifest> write_tensor_files(const std::string& folder,
                                                const ports::Checkpoint& checkpoint);

// Fills in the vectors of manifest->checkpoint from the files. `weights_only`: the model's alone.
Status read_tensor_files(const std::string& folder, bool weights_only,
                         CheckpointManifest* manifest);

}  // namespace tessera::store
