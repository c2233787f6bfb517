// The arithmetic of a merge. Bitwise reproducible: fp32, fixed order, nothing contracted; CPU and
// CUDA give the same bits. The CUDA versions take device pointers (`inputs` and `weights` too),
// launch in stream order without allocating or waiting, and return a cudaError_t.
#pragma once

#include <cstddef>

namespace tessera::kernels {

// out[i] = (((0 + w[0] u[0][i]) + w[1] u[1][i]) + ...) for i < count. `weights` sum to 1. `out`
// must not overlap an input. No inputs: zeros.
void weighted_sum_cpu(const float* const* inputs, const float* weights, size_t input_count,
                      size_t count, float* out);
int weighted_sum_cuda(const float* const* inputs, const float* weights, size_t input_count,
                      size_t count, float* out, void* stream_handle);

// out[i] = base[i] - theta[i].
void pseudo_gradient_cpu(const float* base, const float* theta, size_t count, float* out);

// Nesterov momentum on the pseudo-gradient delta = base - theta (Sutskever et al. 2013, as
// torch.optim.SGD writes it):
//   momentum = mu * momentum + delta
//   base     = base - lr * (delta + mu * momentum)
// The three arrays must not overlap.
void outer_step_cpu(float* base, float* momentum, const float* delta, size_t count, float lr,
                    float mu);
int outer_step_cuda(float* base, float* momentum, const float* delta, size_t count, float lr,
                    float mu, void* stream_handle);

// theta = base_new + (theta - snapshot): local work done since the snapshot is kept. `theta` must
// not overlap the others.
void carry_over_cpu(float* theta, const float* snapshot, const float* base_new, size_t count);
int carry_over_cuda(float* theta, const float* snapshot, const float* base_new, size_t count,
                    void* stream_handle);

}  // namespace tessera::kernels
