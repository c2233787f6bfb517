#include "model/timing.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <limits>

#ifdef TESSERA_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace tessera::model {

void wait_for([[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    TORCH_CHECK(cudaDeviceSynchronize() == cudaSuccess,
                "the device failed: ", cudaGetErrorString(cudaGetLastError()));
  }
#endif
}

double best_seconds(const at::Device& device, uint32_t blocks, uint32_t calls,
                    const std::function<void()>& call) {
  double best = std::numeric_limits<double>::infinity();
  for (uint32_t block = 0; block < blocks; ++block) {
    wait_for(device);
    const auto begin = std::chrono::steady_clock::now();
    for (uint32_t i = 0; i < calls; ++i) call();
    wait_for(device);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    best = std::min(best, taken.count() / calls);
  }
  return best;
}

}  // namespace tessera::model
