// Token ids from outside to tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::model {

// INVALID_ARGUMENT if an id is not below `vocab`: looking it up would be undefined (an assertion on
// a GPU ends the process).
Status check_tokens(const std::vector<uint32_t>& tokens, uint32_t vocab);

// [tokens.size() / row, row] int64 on `device`; checked before.
at::Tensor token_tensor(const std::vector<uint32_t>& tokens, int64_t row, const at::Device& device);

}  // namespace tessera::model
