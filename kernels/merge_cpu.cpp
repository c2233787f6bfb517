// The arithmetic of a merge: plain loops that the compiler vectorises without changing a bit.
#include <algorithm>

#include "tessera/kernels/merge.h"
#include "widest_vectors.h"

namespace tessera::kernels {

TESSERA_WIDEST_VECTORS
void weighted_sum_cpu(const float* const* inputs, const float* weights, size_t input_count,
                      size_t count, float* __restrict__ out) {
  // A chunk of the output stays in the first-level cache while every input passes over it once.
  constexpr size_t kChunk = 2048;
  for (size_t start = 0; start < count; start += kChunk) {
    const size_t end = std::min(start + kChunk, count);
    std::fill(out + start, out + end, 0.0f);
    for (size_t k = 0; k < input_count; ++k) {
      const float* __restrict__ input = inputs[k];
      const float weight = weights[k];
      for (size_t i = start; i < end; ++i) out[i] += weight * input[i];
    }
  }
}

TESSERA_WIDEST_VECTORS
void pseudo_gradient_cpu(const float* __restrict__ base, const float* __restrict__ theta, size_t count,
                         float* __restrict__ out) {
  for (size_t i = 0; i < count; ++i) out[i] = base[i] - theta[i];
}

TESSERA_WIDEST_VECTORS
void outer_step_cpu(float* __restrict__ base, float* __restrict__ momentum,
                    const float* __restrict__ delta, size_t count, float lr, float mu) {
  for (size_t i = 0; i < count; ++i) {
    const float updated = mu * momentum[i] + delta[i];
    momentum[i] = updated;
    base[i] = base[i] - lr * (delta[i] + mu * updated);
  }
}

TESSERA_WIDEST_VECTORS
void carry_over_cpu(float* __restrict__ theta, const float* __restrict__ snapshot,
                    const float* __restrict__ base_new, size_t count) {
  for (size_t i = 0; i < count; ++i) theta[i] = base_new[i] + (theta[i] - snapshot[i]);
}

}  // namespace tessera::kernels
