// Launching a kernel so that its own error comes back.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tessera::kernels {

constexpr int64_t kMaximumGrid = (int64_t{1} << 31) - 1;

// The launch's own error, not one that an earlier call left behind. More blocks than a grid can
// have: cudaErrorInvalidValue.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, cudaStream_t stream,
                   Arguments... arguments) {
  if (blocks < 1 || blocks > kMaximumGrid) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace tessera::kernels
