// Weighted sum, outer step and carry-over of a merge on the GPU: the same bits as merge_cpu.cpp.
#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "tessera/kernels/merge.h"

namespace tessera::kernels {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMaximumBlocks = 1 << 16;

int64_t blocks_for(size_t count) {
  const size_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<int64_t>(blocks < kMaximumBlocks ? blocks : kMaximumBlocks);
}

__global__ void __launch_bounds__(kThreads)
    weighted_sums(const float* const* inputs, const float* weights, size_t input_count,
                  size_t count, float* out) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    float sum = 0.0f;
    for (size_t k = 0; k < input_count; ++k) sum += weights[k] * inputs[k][i];
    out[i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    outer_steps(float* base, float* momentum, const float* delta, size_t count, float lr, float mu) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float updated = mu * momentum[i] + delta[i];
    momentum[i] = updated;
    base[i] = base[i] - lr * (delta[i] + mu * updated);
  }
}

__global__ void __launch_bounds__(kThreads)
    carry_overs(float* theta, const float* snapshot, const float* base_new, size_t count) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    theta[i] = base_new[i] + (theta[i] - snapshot[i]);
  }
}

}  // namespace

int weighted_sum_cuda(const float* const* inputs, const float* weights, size_t input_count,
                      size_t count, float* out, void* stream_handle) {
  if (count == 0) return cudaSuccess;
  return launch(weighted_sums, blocks_for(count), kThreads,
                static_cast<cudaStream_t>(stream_handle), inputs, weights, input_count, count, out);
}

int outer_step_cuda(float* base, float* momentum, const float* delta, size_t count, float lr,
                    float mu, void* stream_handle) {
  if (count == 0) return cudaSuccess;
  return launch(outer_steps, blocks_for(count), kThreads,
                static_cast<cudaStream_t>(stream_handle), base, momentum, delta, count, lr, mu);
}

int carry_over_cuda(float* theta, const float* snapshot, const float* base_new, size_t count,
                    void* stream_handle) {
  if (count == 0) return cudaSuccess;
  return launch(carry_overs, blocks_for(count), kThreads,
                static_cast<cudaStream_t>(stream_handle), theta, snapshot, base_new, count);
}

}  // namespace tessera::kernels
