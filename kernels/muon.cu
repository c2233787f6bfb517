// Muon's elementwise halves on the GPU, bound by memory: the momentum, which leaves the Nesterov
// update in a stack of matrices of one shape for the matrix products, and the application of what
// came of them.
#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "optimizer_device.cuh"
#include "optimizer_math.h"

namespace tessera::kernels {
namespace {

struct MuonTask {
  MuonParams params;
  WeightTargets weights;
  WeightTargets stack;
  bool aligned;  // every array at a multiple of four numbers
};

// one(i) for one number and quad(i) for four; i counts from the block's beginning. Quads are at
// multiples of four of the flat vector: where they are not so in the stack or in the gradient
// (`gradient`, or null), all go one by one.
template <class One, class Quad>
__device__ __forceinline__ void for_block(const MuonBlock& block, bool aligned,
                                          const float* gradient, One one, Quad quad) {
  const bool whole = aligned && (block.flat - block.stack) % 4 == 0 &&
                     (gradient == nullptr || is_aligned_like(gradient, block.flat));
  const QuadParts parts = quad_parts(block.flat, block.flat + block.count, whole);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = parts.begin + thread; i < parts.first_quad; i += kOptimizerThreads) {
    one(i - block.flat);
  }
#pragma unroll 2
  for (int64_t i = parts.first_quad + 4 * thread; i < parts.end_quads; i += 4 * kOptimizerThreads) {
    quad(i - block.flat);
  }
  for (int64_t i = parts.end_quads + thread; i < parts.end; i += kOptimizerThreads) {
    one(i - block.flat);
  }
}

__global__ void __launch_bounds__(kOptimizerThreads) muon_momentum(const MuonTask task) {
  const MuonParams& p = task.params;
  const MuonBlock block = muon_block(p, blockIdx.x);
  if (p.norm->finite == 0) {
    for (int64_t i = threadIdx.x; i < block.count; i += kOptimizerThreads) {
      store_weight(task.stack, block.stack + i, 0.0f);
    }
    return;
  }
  const float scale = p.norm->scale;
  const float* gradient = gradient_of(p, block);
  float* momentum = p.momentum + block.flat;
  for_block(
      block, task.aligned, gradient,
      [&](int64_t i) {
        float m = momentum[i];
        const float update = muon_momentum_update(p, scale, gradient[i], m);
        momentum[i] = m;
        store_weight(task.stack, block.stack + i, update);
      },
      [&](int64_t i) {
        const float4 g = __ldcs(reinterpret_cast<const float4*>(gradient + i));
        float4 m = __ldcs(reinterpret_cast<const float4*>(momentum + i));
        float4 update;
        update.x = muon_momentum_update(p, scale, g.x, m.x);
        update.y = muon_momentum_update(p, scale, g.y, m.y);
        update.z = muon_momentum_update(p, scale, g.z, m.z);
        update.w = muon_momentum_update(p, scale, g.w, m.w);
        __stcs(reinterpret_cast<float4*>(momentum + i), m);
        store_weights(task.stack, block.stack + i, update);
      });
}

__device__ __forceinline__ float direction_at(const MuonTask& task, int64_t at) {
  return task.stack.as_float != nullptr ? task.stack.as_float[at]
                                        : float_of_bfloat16(task.stack.as_bfloat16[at]);
}

__device__ __forceinline__ float4 direction_quad(const MuonTask& task, int64_t at) {
  if (task.stack.as_float != nullptr) {
    return __ldcs(reinterpret_cast<const float4*>(task.stack.as_float + at));
  }
  const uint2 bits = __ldcs(reinterpret_cast<const uint2*>(task.stack.as_bfloat16 + at));
  return make_float4(float_of_bits(bits.x << 16), float_of_bits(bits.x & 0xffff0000u),
                     float_of_bits(bits.y << 16), float_of_bits(bits.y & 0xffff0000u));
}

__global__ void __launch_bounds__(kOptimizerThreads) muon_apply(const MuonTask task) {
  const MuonParams& p = task.params;
  const MuonBlock block = muon_block(p, blockIdx.x);
  float* values = p.values + block.flat;
  if (p.norm->finite == 0) {
    for (int64_t i = threadIdx.x; i < block.count; i += kOptimizerThreads) {
      store_weight(task.weights, block.flat + i, values[i]);
    }
    return;
  }
  for_block(
      block, task.aligned, /*gradient=*/nullptr,
      [&](int64_t i) {
        values[i] = muon_applied(p, values[i], direction_at(task, block.stack + i));
        store_weight(task.weights, block.flat + i, values[i]);
      },
      [&](int64_t i) {
        const float4 direction = direction_quad(task, block.stack + i);
        float4 value = __ldcs(reinterpret_cast<const float4*>(values + i));
        value.x = muon_applied(p, value.x, direction.x);
        value.y = muon_applied(p, value.y, direction.y);
        value.z = muon_applied(p, value.z, direction.z);
        value.w = muon_applied(p, value.w, direction.w);
        __stcs(reinterpret_cast<float4*>(values + i), value);
        store_weights(task.weights, block.flat + i, value);
      });
}

bool is_complete(const MuonParams& params) {
  return params.matrices >= 0 && params.matrix_values >= 1 && params.offsets != nullptr &&
         params.norm != nullptr &&
         (params.stack_float == nullptr) != (params.stack_bfloat16 == nullptr);
}

MuonTask task_of(const MuonParams& params) {
  MuonTask task = {params,
                   {params.weights_float, params.weights_bfloat16},
                   {params.stack_float, params.stack_bfloat16},
                   false};
  task.aligned = is_quad_aligned(params.momentum) && is_quad_aligned(params.values) && is_quad_aligned(task.weights) &&
                 is_quad_aligned(task.stack);
  return task;
}

}  // namespace

int muon_momentum_cuda(const MuonParams& params, void* stream_handle) {
  if (params.matrices == 0) return cudaSuccess;
  const GradientPlaces& gradient = params.gradient;
  const bool apart = gradient.pieces != nullptr && params.gradient_pieces != nullptr &&
                     params.gradient_offsets != nullptr;
  if (!is_complete(params) || (gradient.flat == nullptr && !apart) || params.momentum == nullptr) {
    return cudaErrorInvalidValue;
  }
  return launch(muon_momentum, muon_block_count(params), kOptimizerThreads,
                static_cast<cudaStream_t>(stream_handle), task_of(params));
}

int muon_apply_cuda(const MuonParams& params, void* stream_handle) {
  if (params.matrices == 0) return cudaSuccess;
  if (!is_complete(params) || params.values == nullptr) return cudaErrorInvalidValue;
  return launch(muon_apply, muon_block_count(params), kOptimizerThreads,
                static_cast<cudaStream_t>(stream_handle), task_of(params));
}

}  // namespace tessera::kernels
