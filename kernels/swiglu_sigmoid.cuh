// SwiGLU's sigmoid on the GPU.
#pragma once

#include <cuda_runtime_api.h>

namespace tessera::kernels {

// What bf16 can show is exact to the hardware's quick functions; fp32 gets the accurate ones.
template <class T>
__device__ __forceinline__ float sigmoid(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return 1.0f / (1.0f + expf(-value));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-value));
  }
}

}  // namespace tessera::kernels
