// The optimizer kernels on the GPU. Both passes are bound by memory: they touch every number once,
// 16 bytes a load, several loads in flight a thread; numbers that nobody reads again soon are
// marked to leave the cache first. No atomics: sums have one order, so that a step can be repeated
// to the bit.
#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "optimizer_device.cuh"
#include "optimizer_math.h"

namespace tessera::kernels {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- the norm

// The block's sum, in thread 0: within warps by halves, then over the warps by halves.
__device__ double block_sum(double value) {
  __shared__ double warps[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, half);
  }
  if (lane == 0) warps[warp] = value;
  __syncthreads();
  if (warp != 0) return 0;
  value = lane < static_cast<int>(blockDim.x) / kWarp ? warps[lane] : 0;
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, half);
  }
  return value;
}

// One chunk a block: four squares in fp32, the rest of the sum in double.
__global__ void __launch_bounds__(kOptimizerThreads)
    sum_chunks(const OptimizerChunk* chunks, const GradientPlaces places, double* partials) {
  const OptimizerChunk chunk = chunks[blockIdx.x];
  const float* gradient = gradient_of(places, chunk);
  const QuadParts parts = quad_parts(0, chunk.count, is_aligned_like(gradient, 0));
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
#pragma unroll 8
  for (int64_t at = parts.first_quad + 4 * thread; at < parts.end_quads;
       at += 4 * kOptimizerThreads) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(gradient + at));
    sum += static_cast<double>(v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w));
  }
  for (int64_t i = parts.begin + thread; i < parts.first_quad; i += kOptimizerThreads) {
    sum += static_cast<double>(gradient[i] * gradient[i]);
  }
  for (int64_t i = parts.end_quads + thread; i < parts.end; i += kOptimizerThreads) {
    sum += static_cast<double>(gradient[i] * gradient[i]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

constexpr int kFinishThreads = 1024;

__global__ void __launch_bounds__(kFinishThreads)
    finish_norm(const double* partials, int64_t count, double microbatches, double clip_norm,
                GradientNorm* result) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *result = gradient_norm_of(sum, microbatches, clip_norm);
}

// ---- the step

struct AdamTask {
  const OptimizerChunk* chunks;
  float* values;
  GradientPlaces gradient;
  float* first_moment;
  float* second_moment;
  WeightTargets weights;
  AdamConstants constants;
  const GradientNorm* norm;
  bool aligned;  // every array but the gradient at a multiple of four values
};

// `gradient` here and below: that of the value at `at`.
__device__ __forceinline__ void step_one(const AdamTask& task, const float* gradient, float scale,
                                         float keep, int64_t at) {
  float value = task.values[at], first = task.first_moment[at], second = task.second_moment[at];
  adam_update(task.constants, scale, keep, *gradient, value, first, second);
  task.values[at] = value;
  task.first_moment[at] = first;
  task.second_moment[at] = second;
  store_weight(task.weights, at, value);
}

struct AdamQuad {
  float4 value, gradient, first, second;
};

__device__ __forceinline__ AdamQuad load_quad(const AdamTask& task, const float* gradient,
                                              int64_t at) {
  return {__ldcs(reinterpret_cast<const float4*>(task.values + at)),
          __ldcs(reinterpret_cast<const float4*>(gradient)),
          __ldcs(reinterpret_cast<const float4*>(task.first_moment + at)),
          __ldcs(reinterpret_cast<const float4*>(task.second_moment + at))};
}

__device__ __forceinline__ void step_quad(const AdamTask& task, float scale, float keep, int64_t at,
                                          AdamQuad quad) {
  const AdamConstants& c = task.constants;
  adam_update(c, scale, keep, quad.gradient.x, quad.value.x, quad.first.x, quad.second.x);
  adam_update(c, scale, keep, quad.gradient.y, quad.value.y, quad.first.y, quad.second.y);
  adam_update(c, scale, keep, quad.gradient.z, quad.value.z, quad.first.z, quad.second.z);
  adam_update(c, scale, keep, quad.gradient.w, quad.value.w, quad.first.w, quad.second.w);
  __stcs(reinterpret_cast<float4*>(task.values + at), quad.value);
  __stcs(reinterpret_cast<float4*>(task.first_moment + at), quad.first);
  __stcs(reinterpret_cast<float4*>(task.second_moment + at), quad.second);
  store_weights(task.weights, at, quad.value);
}

// The gradient was not finite: the weights are the values as they are.
__device__ void copy_chunk(const AdamTask& task, const OptimizerChunk& chunk) {
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kOptimizerThreads) {
    store_weight(task.weights, chunk.offset + i, task.values[chunk.offset + i]);
  }
}

__global__ void __launch_bounds__(kOptimizerThreads) adam_step(const AdamTask task) {
  const OptimizerChunk chunk = task.chunks[blockIdx.x];
  if (task.norm->finite == 0) {
    copy_chunk(task, chunk);
    return;
  }
  const float scale = task.norm->scale;
  const float keep = chunk.decays != 0 ? task.constants.keep : 1.0f;
  const float* gradient = gradient_of(task.gradient, chunk);
  const bool aligned = task.aligned && is_aligned_like(gradient, chunk.offset);
  const QuadParts parts = quad_parts(chunk.offset, chunk.offset + chunk.count, aligned);
  const int thread = static_cast<int>(threadIdx.x);
  const auto gradient_at = [&](int64_t at) { return gradient + (at - chunk.offset); };
  for (int64_t at = parts.begin + thread; at < parts.first_quad; at += kOptimizerThreads) {
    step_one(task, gradient_at(at), scale, keep, at);
  }
  constexpr int64_t kStride = int64_t{4} * kOptimizerThreads;
  int64_t at = parts.first_quad + 4 * thread;
  // Two quads at a time: eight loads are under way before the first number is needed.
  for (; at + kStride < parts.end_quads; at += 2 * kStride) {
    const AdamQuad low = load_quad(task, gradient_at(at), at);
    const AdamQuad high = load_quad(task, gradient_at(at + kStride), at + kStride);
    step_quad(task, scale, keep, at, low);
    step_quad(task, scale, keep, at + kStride, high);
  }
  if (at < parts.end_quads) {
    step_quad(task, scale, keep, at, load_quad(task, gradient_at(at), at));
  }
  for (int64_t i = parts.end_quads + thread; i < parts.end; i += kOptimizerThreads) {
    step_one(task, gradient_at(i), scale, keep, i);
  }
}

}  // namespace

int norm_partials_cuda(const NormParams& params, void* stream_handle) {
  if (params.chunk_count == 0) return cudaSuccess;
  if (params.chunk_count < 0 || params.chunks == nullptr || !is_somewhere(params.gradient) ||
      params.partials == nullptr) {
    return cudaErrorInvalidValue;
  }
  return launch(sum_chunks, params.chunk_count, kOptimizerThreads,
                static_cast<cudaStream_t>(stream_handle), params.chunks, params.gradient,
                params.partials);
}

int finish_norm_cuda(const NormParams& params, void* stream_handle) {
  if (params.chunk_count < 0 || params.microbatches < 1 || params.result == nullptr ||
      (params.chunk_count > 0 && params.partials == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return launch(finish_norm, 1, kFinishThreads, static_cast<cudaStream_t>(stream_handle),
                static_cast<const double*>(params.partials), params.chunk_count,
                static_cast<double>(params.microbatches), params.clip_norm, params.result);
}

int adam_step_cuda(const AdamParams& params, void* stream_handle) {
  if (params.chunk_count == 0) return cudaSuccess;
  if (params.chunk_count < 0 || params.chunks == nullptr || params.values == nullptr ||
      !is_somewhere(params.gradient) || params.first_moment == nullptr ||
      params.second_moment == nullptr || params.norm == nullptr) {
    return cudaErrorInvalidValue;
  }
  const WeightTargets weights = {params.weights_float, params.weights_bfloat16};
  AdamTask task = {params.chunks,       params.values,        params.gradient,
                   params.first_moment, params.second_moment, weights,
                   params.constants,    params.norm,          false};
  task.aligned = is_quad_aligned(params.values) && is_quad_aligned(params.first_moment) &&
                 is_quad_aligned(params.second_moment) && is_quad_aligned(weights);
  return launch(adam_step, params.chunk_count, kOptimizerThreads,
                static_cast<cudaStream_t>(stream_handle), task);
}

}  // namespace tessera::kernels
