// The 8-bit floats on the GPU. Bound by memory: both passes read 16 bytes a load; the second writes
// the codes and, through shared memory, their transpose, from one reading of the tensor.
#include <cuda_fp8.h>

#include "fp8_math.h"
#include "launch.cuh"
#include "real_chunk.cuh"

namespace tessera::kernels {
namespace {

constexpr int kThreads = 256;

// ---- the magnitude

// Bits as fp32 of the largest magnitude among a chunk's numbers; a NaN's are above infinity's.
__device__ __forceinline__ uint32_t largest_bits(const Chunk<float>& chunk) {
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    largest = max(largest, __float_as_uint(chunk.values[k]) & kMagnitudeMask);
  }
  return largest;
}

__device__ __forceinline__ uint32_t largest_bits(const Chunk<Bfloat16>& chunk) {
  uint32_t pair = 0;
#pragma unroll
  for (int k = 0; k < kChunk / 2; ++k) pair = __vmaxu2(pair, chunk.words[k] & 0x7fff7fffu);
  return max(pair << 16, pair & 0xffff0000u);
}

constexpr int kLoads = 4;  // chunks that a thread has under way

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    magnitude_kernel(const T* __restrict__ x, int64_t count, uint32_t* magnitude) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * kChunk;
  uint32_t largest = 0;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kChunk; at < count;
       at += kLoads * stride) {
    Chunk<T> chunks[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t place = at + i * stride;
      const int64_t left = count - place;
      chunks[i] = load_chunk<kAligned>(x + place, static_cast<int>(left < kChunk ? left : kChunk));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) largest = max(largest, largest_bits(chunks[i]));
  }
  largest = __reduce_max_sync(0xffffffffu, min(largest, kInfinityBits));
  // Of integers: the order does not matter.
  if (threadIdx.x % 32 == 0) atomicMax(magnitude, largest);
}

// ---- the codes

constexpr int kTileRows = 128;
constexpr int kTileColumns = 64;
constexpr int kTileChunks = kTileColumns / kChunk;
constexpr int kPitch = kTileColumns + 4;  // of a row in shared memory: whole words, and odd in number
constexpr int kRun = 32;                  // rows that a thread transposes

// Eight codes. Where all numbers are finite, the hardware's conversion is the reference's.
template <class T>
__device__ __forceinline__ uint2 codes_of(const Chunk<T>& chunk, float scale, Fp8Format format,
                                          bool finite) {
  uint32_t words[2] = {};
  if (finite) {
    const __nv_fp8_interpretation_t kind = format == Fp8Format::kE4m3 ? __NV_E4M3 : __NV_E5M2;
#pragma unroll
    for (int k = 0; k < kChunk; k += 2) {
      const float2 pair = {number_of(chunk, k) * scale, number_of(chunk, k + 1) * scale};
      const uint32_t codes = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, kind);
      words[k / 4] |= codes << (8 * (k % 4));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const uint32_t code = fp8_of_float(number_of(chunk, k) * scale, format);
      words[k / 4] |= code << (8 * (k % 4));
    }
  }
  return make_uint2(words[0], words[1]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) quantise_kernel(const Fp8QuantiseParams params) {
  __shared__ __align__(16) uint8_t tile[kTileRows * kPitch];
  const uint32_t magnitude = *params.magnitude;
  const int exponent = fp8_scale_exponent(magnitude, params.format);
  const float scale = power_of_two(exponent);
  if (blockIdx.x == 0 && threadIdx.x == 0) *params.inverse_scale = power_of_two(-exponent);
  const int64_t across = (params.width + kTileColumns - 1) / kTileColumns;
  const int64_t first_row = int64_t{blockIdx.x} / across * kTileRows;
  const int64_t first_column = int64_t{blockIdx.x} % across * kTileColumns;
  constexpr int kLoadsEach = kTileRows * kTileChunks / kThreads;
  Chunk<T> chunks[kLoadsEach];
#pragma unroll
  for (int i = 0; i < kLoadsEach; ++i) {
    const int item = static_cast<int>(threadIdx.x) + i * kThreads;
    const int64_t row = first_row + item / kTileChunks;
    const int64_t column = first_column + item % kTileChunks * kChunk;
    const bool inside = row < params.rows && column < params.width;
    chunks[i] = load_chunk<true>(static_cast<const T*>(params.x) + row * params.width + column,
                                 inside ? kChunk : 0);
  }
#pragma unroll
  for (int i = 0; i < kLoadsEach; ++i) {
    const int item = static_cast<int>(threadIdx.x) + i * kThreads;
    const int64_t row = first_row + item / kTileChunks;
    const int64_t column = first_column + item % kTileChunks * kChunk;
    const uint2 codes = codes_of(chunks[i], scale, params.format, magnitude < kInfinityBits);
    if (params.codes != nullptr && row < params.rows && column < params.width) {
      *reinterpret_cast<uint2*>(params.codes + row * params.width + column) = codes;
    }
    uint32_t* place = reinterpret_cast<uint32_t*>(tile + item / kTileChunks * kPitch +
                                                  item % kTileChunks * kChunk);
    place[0] = codes.x;
    place[1] = codes.y;
  }
  if (params.transposed == nullptr) return;
  __syncthreads();
  // A warp has 32 neighbouring columns, a thread 32 rows of its column: a whole sector of memory.
  const int column = static_cast<int>(threadIdx.x) % kTileColumns;
  const int run = static_cast<int>(threadIdx.x) / kTileColumns * kRun;
  if (first_column + column >= params.width) return;
  uint8_t* target = params.transposed + (first_column + column) * params.rows + first_row + run;
#pragma unroll
  for (int half = 0; half < kRun; half += 16) {
    if (first_row + run + half >= params.rows) return;
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      words[i / 4] |= uint32_t{tile[(run + half + i) * kPitch + column]} << (8 * (i % 4));
    }
    *reinterpret_cast<uint4*>(target + half) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace

int fp8_magnitude_cuda(const Fp8MagnitudeParams& params, void* stream_handle) {
  if (params.count < 0 || params.magnitude == nullptr ||
      (params.count > 0 && params.x == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const cudaError_t cleared =
      cudaMemsetAsync(params.magnitude, 0, sizeof(*params.magnitude), stream);
  if (cleared != cudaSuccess || params.count == 0) return cleared;
  const int64_t chunks = (params.count + kChunk - 1) / kChunk;
  const int64_t needed = (chunks + kThreads * kLoads - 1) / (kThreads * kLoads);
  constexpr int64_t kResident = 132 * 8;
  return with_real(params.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    return with_bool(params.count % kChunk == 0 && are_aligned(params.x), [&](auto alignment) {
      return launch(magnitude_kernel<T, decltype(alignment)::kValue>,
                    needed < kResident ? needed : kResident, kThreads, stream,
                    static_cast<const T*>(params.x), params.count, params.magnitude);
    });
  });
}

int fp8_quantise_cuda(const Fp8QuantiseParams& params, void* stream_handle) {
  if (params.rows < 0 || params.rows % 16 != 0 || params.width < 16 || params.width % 16 != 0 ||
      params.magnitude == nullptr || params.inverse_scale == nullptr ||
      (params.rows > 0 && params.x == nullptr) ||
      !are_aligned(params.x, params.codes, params.transposed)) {
    return cudaErrorInvalidValue;
  }
  const int64_t down = params.rows == 0 ? 1 : (params.rows + kTileRows - 1) / kTileRows;
  const int64_t across = (params.width + kTileColumns - 1) / kTileColumns;
  return with_real(params.type, [&](auto type) {
    return launch(quantise_kernel<typename decltype(type)::Type>, down * across, kThreads,
                  static_cast<cudaStream_t>(stream_handle), params);
  });
}

}  // namespace tessera::kernels
