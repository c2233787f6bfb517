// The uploads that a reduction reads.
#pragma once

#include <string_view>

#include "tessera/base/status.h"
#include "tessera/core/object.h"
#include "tessera/node/merge_reduce.h"

namespace tessera::node {

// The list of an upload's blocks. DATA_LOSS if it is not one of this stage.
StatusOr<core::ObjectManifest> checked_upload(const ReduceInputs& inputs, const Digest& object, std::string_view bytes);

}  // namespace tessera::node
