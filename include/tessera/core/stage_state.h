// Values of a stage that travel between threads and nodes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/ids.h"

namespace tessera::core {

// A compressed boundary tensor of rows = B * T (tokens in order, batch major). kernels/codec.h says what the bytes are.
struct BoundaryPayload {
  int32_t exponent = 0;
  std::string bytes;
};

struct MicrobatchKey {
  MicrobatchId microbatch = 0;
  uint32_t attempt = 0;
  auto operator<=>(const MicrobatchKey&) const = default;
};

// A replica's own optimizer state and partial gradient, in the stage's flat layout.
struct LocalState {
  std::vector<float> masters;
  std::vector<float> first_moment;
  std::vector<float> second_moment;
  uint64_t optimizer_steps = 0;       // age of the moments (bias correction)
  std::vector<float> gradient;        // accumulated since the last step; empty if there is none
  uint32_t gradient_microbatches = 0;
};

using Values = std::shared_ptr<const std::vector<float>>;

}  // namespace tessera::core
