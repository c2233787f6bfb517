// The merge's wire formats and reduction on the GPU: the same bytes as merge_wire_cpu.cpp.
//
// All of it is bound by memory. A warp codes a group (eight values a lane, so one pass over the
// registers finds the scale); decoding takes four values a thread; a dot product has one thread
// block a wire block, each thread being one of the reference's lanes.
#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "merge_math.h"

namespace tessera::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kQuads = static_cast<int>(kMergeGroup) / (4 * kWarp);  // of a lane
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaximumBlocks = 1 << 16;  // further work takes further rounds
static_assert(kMergeGroup == kThreads, "a thread is a lane of the dot product");

bool is_run(uint64_t block_values) {
  return block_values >= kMergeGroup && block_values <= kMaximumMergeBlock &&
         block_values % kMergeGroup == 0;
}

// Where the group with number `group` of a run lies.
struct GroupPlace {
  uint64_t first;   // value within the run
  uint64_t start;   // value within its block
  uint64_t block;   // within the run
  uint64_t count;   // values of the block
  int size;         // values of the group
};

__device__ __forceinline__ GroupPlace place_of(const MergeRun& run, uint64_t group) {
  GroupPlace place;
  place.first = group * kMergeGroup;  // blocks are whole groups, but for the run's last
  place.block = place.first / run.block_values;
  place.start = place.first - place.block * run.block_values;
  const uint64_t begin = place.block * run.block_values;
  place.count = run.values - begin < run.block_values ? run.values - begin : run.block_values;
  const uint64_t left = place.count - place.start;
  place.size = static_cast<int>(left < kMergeGroup ? left : kMergeGroup);
  return place;
}

__device__ __forceinline__ uint64_t groups_of(uint64_t values) {
  return (values + kMergeGroup - 1) / kMergeGroup;
}

template <Codec kFormat>
__device__ __forceinline__ void encode_quad(const MergeEncodeParams& params,
                                            const float (&values)[4], const GroupPlace& place,
                                            int offset, float scale, bool silent,
                                            uint8_t* block) {
  PhiloxBlock random = {};
  if (params.stochastic && kFormat != Codec::kFp32) {
    const uint64_t number =
        params.numbers != nullptr ? params.numbers[place.block] : params.first_block + place.block;
    random = rounding_words(params.seed, number, (place.start + offset) / 4);
  }
  const int count = min(4, place.size - offset);
  if constexpr (kFormat == Codec::kFp32) {
    auto* out = reinterpret_cast<float*>(block) + place.start + offset;
    for (int i = 0; i < count; ++i) out[i] = canonical_nan(values[i]);
  } else if constexpr (kFormat == Codec::kBf16) {
    auto* out = reinterpret_cast<uint16_t*>(block) + place.start + offset;
    for (int i = 0; i < count; ++i) {
      out[i] = params.stochastic ? bfloat16_stochastically(values[i], random.word[i])
                                 : bfloat16_of_float(values[i]);
    }
  } else {
    const float levels = merge_levels(kFormat);
    int32_t codes[4] = {};
    for (int i = 0; i < count && !silent; ++i) {
      codes[i] = merge_code(values[i], scale, levels, params.stochastic, random.word[i]);
    }
    uint8_t* out = block + 4 * groups_of(place.count);
    if constexpr (kFormat == Codec::kInt8) {
      out += place.start + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(codes[i]);
    } else {
      out += (place.start + offset) / 2;
      for (int i = 0; i < count; i += 2) {
        out[i / 2] = static_cast<uint8_t>((codes[i] & 0xf) | ((codes[i + 1] & 0xf) << 4));
      }
    }
  }
}

template <Codec kFormat>
__global__ void __launch_bounds__(kThreads)
    encode_groups(const MergeEncodeParams params, uint64_t whole) {
  const uint64_t groups = groups_of(params.run.values);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint64_t stride = uint64_t{gridDim.x} * (kThreads / kWarp);
  for (uint64_t group = uint64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
       group < groups; group += stride) {
    const GroupPlace place = place_of(params.run, group);
    float values[kQuads][4];
    uint32_t peak = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int offset = 4 * (lane + kWarp * q);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[q][i] = offset + i < place.size ? params.input[place.first + offset + i] : 0.0f;
        peak = max(peak, bits_of_float(values[q][i]) & kMagnitudeMask);
      }
    }
    uint8_t* block = params.payload + place.block * whole;
    MergeScale scale = {0.0f, false};
    if constexpr (kFormat == Codec::kInt8 || kFormat == Codec::kInt4) {
#pragma unroll
      for (int half = kWarp / 2; half > 0; half /= 2) {
        peak = max(peak, __shfl_xor_sync(kAllLanes, peak, half));
      }
      scale = merge_scale(peak, merge_levels(kFormat));
      if (lane == 0) reinterpret_cast<float*>(block)[place.start / kMergeGroup] = scale.scale;
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int offset = 4 * (lane + kWarp * q);
      if (offset < place.size) {
        encode_quad<kFormat>(params, values[q], place, offset, scale.scale, scale.silent, block);
      }
    }
  }
}

template <Codec kFormat>
__global__ void __launch_bounds__(kThreads)
    decode_values(const MergeDecodeParams params, uint64_t whole) {
  const uint64_t stride = uint64_t{gridDim.x} * kThreads;
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < params.run.values;
       i += stride) {
    const GroupPlace place = place_of(params.run, i / kMergeGroup);
    const uint64_t within = place.start + i % kMergeGroup;
    const uint8_t* block = params.payload + place.block * whole;
    float value;
    if constexpr (kFormat == Codec::kFp32) {
      value = reinterpret_cast<const float*>(block)[within];
    } else if constexpr (kFormat == Codec::kBf16) {
      value = float_of_bfloat16(reinterpret_cast<const uint16_t*>(block)[within]);
    } else {
      const float scale = reinterpret_cast<const float*>(block)[within / kMergeGroup];
      const uint8_t* codes = block + 4 * groups_of(place.count);
      const int32_t code = kFormat == Codec::kInt8
                               ? static_cast<int8_t>(codes[within])
                               : int4_of_nibble(codes[within / 2] >> (within % 2 * 4));
      value = merge_value(code, scale);
    }
    params.sum[i] = params.assign ? value : params.sum[i] + params.weight * value;
  }
}

__global__ void __launch_bounds__(kThreads) block_dots(const MergeDotsParams params) {
  __shared__ double lanes[kThreads];
  const uint64_t blocks = (params.values + params.block_values - 1) / params.block_values;
  for (uint64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
    const uint64_t first = b * params.block_values;
    const uint64_t left = params.values - first;
    const uint64_t count = left < params.block_values ? left : params.block_values;
    const float* a = params.a + first;
    const float* other = params.b + (params.b_values > 0 ? first % params.b_values : first);
    double sum = 0.0;
    for (uint64_t i = threadIdx.x; i < count; i += kMergeGroup) {
      sum += static_cast<double>(a[i]) * static_cast<double>(other[i]);
    }
    lanes[threadIdx.x] = sum;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
    }
    if (threadIdx.x == 0) params.dots[b] = lanes[0];
    __syncthreads();  // before the next round overwrites what thread 0 reads
  }
}

__global__ void __launch_bounds__(kThreads) factors(const MergeFactorsParams params) {
  const uint64_t stride = uint64_t{gridDim.x} * kThreads;
  const uint64_t count = params.input_count * params.blocks;
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    params.factors[i] = merge_factor(params.weights[i / params.blocks], params.energies[i]);
  }
}

__global__ void __launch_bounds__(kThreads) scaled_sum(const MergeScaledSumParams params) {
  const uint64_t stride = uint64_t{gridDim.x} * kThreads;
  const uint64_t blocks = (params.values + params.block_values - 1) / params.block_values;
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < params.values; i += stride) {
    const uint64_t block = i / params.block_values;
    float sum = 0.0f;
    for (uint32_t k = 0; k < params.input_count; ++k) {
      const float factor = params.factors[k * blocks + block];
      if (!isnan(factor)) sum += factor * params.inputs[k][i];
    }
    params.out[i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) trimmed_means(const TrimmedMeanParams params) {
  const uint64_t stride = uint64_t{gridDim.x} * kThreads;
  const uint32_t n = params.input_count;
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < params.values; i += stride) {
    uint32_t ordered[kMaximumTrimmedInputs];
    for (uint32_t k = 0; k < n; ++k) {
      const uint32_t value = ordered_bits(params.inputs[k][i]);
      uint32_t at = k;
      for (; at > 0 && ordered[at - 1] > value; --at) ordered[at] = ordered[at - 1];
      ordered[at] = value;
    }
    float sum = 0.0f;
    for (uint32_t k = params.trim; k < n - params.trim; ++k) sum += value_of_ordered(ordered[k]);
    params.out[i] = sum / static_cast<float>(n - 2 * params.trim);
  }
}

int64_t blocks_for(uint64_t items, uint64_t per_block) {
  const uint64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<int64_t>(blocks < kMaximumBlocks ? blocks : kMaximumBlocks);
}

}  // namespace

int merge_encode_cuda(const MergeEncodeParams& params, void* stream_handle) {
  if (!is_run(params.run.block_values)) return cudaErrorInvalidValue;
  if (params.run.values == 0) return cudaSuccess;
  if (params.input == nullptr || params.payload == nullptr) return cudaErrorInvalidValue;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = blocks_for(params.run.values, kMergeGroup * (kThreads / kWarp));
  const uint64_t whole = merge_block_bytes(params.run.format, params.run.block_values);
  switch (params.run.format) {
    case Codec::kFp32:
      return launch(encode_groups<Codec::kFp32>, blocks, kThreads, stream, params, whole);
    case Codec::kBf16:
      return launch(encode_groups<Codec::kBf16>, blocks, kThreads, stream, params, whole);
    case Codec::kInt8:
      return launch(encode_groups<Codec::kInt8>, blocks, kThreads, stream, params, whole);
    case Codec::kInt4:
      return launch(encode_groups<Codec::kInt4>, blocks, kThreads, stream, params, whole);
  }
  return cudaErrorInvalidValue;
}

int merge_decode_cuda(const MergeDecodeParams& params, void* stream_handle) {
  if (!is_run(params.run.block_values)) return cudaErrorInvalidValue;
  if (params.run.values == 0) return cudaSuccess;
  if (params.sum == nullptr || params.payload == nullptr) return cudaErrorInvalidValue;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = blocks_for(params.run.values, kThreads);
  const uint64_t whole = merge_block_bytes(params.run.format, params.run.block_values);
  switch (params.run.format) {
    case Codec::kFp32:
      return launch(decode_values<Codec::kFp32>, blocks, kThreads, stream, params, whole);
    case Codec::kBf16:
      return launch(decode_values<Codec::kBf16>, blocks, kThreads, stream, params, whole);
    case Codec::kInt8:
      return launch(decode_values<Codec::kInt8>, blocks, kThreads, stream, params, whole);
    case Codec::kInt4:
      return launch(decode_values<Codec::kInt4>, blocks, kThreads, stream, params, whole);
  }
  return cudaErrorInvalidValue;
}

int merge_dots_cuda(const MergeDotsParams& params, void* stream_handle) {
  if (!is_run(params.block_values) || params.b_values % params.block_values != 0) {
    return cudaErrorInvalidValue;
  }
  if (params.values == 0) return cudaSuccess;
  return launch(block_dots, blocks_for(params.values, params.block_values), kThreads,
                static_cast<cudaStream_t>(stream_handle), params);
}

int merge_factors_cuda(const MergeFactorsParams& params, void* stream_handle) {
  if (params.blocks == 0 || params.input_count == 0) return cudaSuccess;
  return launch(factors, blocks_for(params.input_count * params.blocks, kThreads), kThreads,
                static_cast<cudaStream_t>(stream_handle), params);
}

int merge_scaled_sum_cuda(const MergeScaledSumParams& params, void* stream_handle) {
  if (!is_run(params.block_values)) return cudaErrorInvalidValue;
  if (params.values == 0) return cudaSuccess;
  return launch(scaled_sum, blocks_for(params.values, kThreads), kThreads,
                static_cast<cudaStream_t>(stream_handle), params);
}

int trimmed_mean_cuda(const TrimmedMeanParams& params, void* stream_handle) {
  if (params.input_count > kMaximumTrimmedInputs ||
      2 * uint64_t{params.trim} >= params.input_count) {
    return cudaErrorInvalidValue;
  }
  if (params.values == 0) return cudaSuccess;
  return launch(trimmed_means, blocks_for(params.values, kThreads), kThreads,
                static_cast<cudaStream_t>(stream_handle), params);
}

}  // namespace tessera::kernels
