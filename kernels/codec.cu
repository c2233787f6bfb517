// The codecs on the GPU: the same bytes as codec_cpu.cpp.
//
// All of it is bound by memory. A row belongs to 4, 8, 16 or 32 lanes of a warp, by its width, so
// that the narrow rows of a compressed boundary fill warps and wide ones are read in whole lines.
// Coding works on quads (four neighbouring columns a lane: one 16-byte load, one store, one block
// of random words). Integer codecs take three launches: set the exponent to its floor; measure
// every row and raise the exponent by an integer atomicMax (order does not matter, unlike with
// floats); encode. The second leaves what it measured in the first 8 bytes of each row's codes,
// where they will be overwritten by the third: no workspace, and no second look at wide rows.
#include <cuda_runtime_api.h>

#include <cstring>

#include "codec_math.h"
#include "codec_quads.cuh"
#include "launch.cuh"
#include "tessera/kernels/codec.h"

namespace tessera::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaximumBlocks = 8192;  // further rows take further rounds: few atomics
constexpr unsigned kAllLanes = 0xffffffffu;

// An EncodeParams with everything derived on the host.
struct EncodeTask {
  const float* input;
  int64_t rows;
  int32_t width;
  bool normalise;
  bool stochastic;
  bool statistics_kept;  // in the first bytes of each row's codes
  bool aligned_input;    // every quad at a multiple of 16 bytes
  bool aligned_codes;    // every quad's codes at a multiple of their size
  float epsilon;
  uint64_t seed;
  uint64_t stream;
  uint8_t* scales;
  uint8_t* codes;
  size_t row_code_bytes;
  int32_t* exponent;
};

struct DecodeTask {
  const uint8_t* scales;
  const uint8_t* codes;
  size_t row_code_bytes;
  int64_t rows;
  int32_t width;
  int32_t exponent;
  bool aligned_codes;
  bool aligned_output;
  float* output;
};

// ---- encode

// The statistics of the row that `kLanes` neighbouring lanes share. All lanes of the warp must come
// here; groups without a row come with width 0. Lane l plays the reference's lanes l, l + kLanes,
// ...: the same sums in the same order.
template <int kLanes>
__device__ RowStatistics measure_row(const float* __restrict__ row, int width, int lane,
                                     bool normalise, float epsilon) {
  constexpr int kShare = kWarp / kLanes;
  float sums[kShare] = {};
  uint32_t peak_bits = 0;
#pragma unroll(kShare == 1 ? 8 : 1)
  for (int start = 0; start < width; start += kWarp) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int column = start + lane + kLanes * i;
      if (column < width) {
        const float value = __ldg(row + column);
        sums[i] += value * value;
        peak_bits = max(peak_bits, bits_of_float(value) & kMagnitudeMask);
      }
    }
  }
#pragma unroll
  for (int half = kShare / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    sums[0] += __shfl_xor_sync(kAllLanes, sums[0], half);
    peak_bits = max(peak_bits, __shfl_xor_sync(kAllLanes, peak_bits, half));
  }
  return {peak_bits, normalise ? normalising_divisor(sums[0], width, epsilon) : 1.0f};
}

__global__ void set_exponent(int32_t* exponent, int32_t value) { *exponent = value; }

template <int kLanes>
__global__ void __launch_bounds__(kThreads) measure_rows(const EncodeTask task) {
  constexpr int kGroups = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  int32_t largest = kSmallestExponent;
  for (int64_t first = int64_t{blockIdx.x} * kGroups; first < task.rows;
       first += int64_t{gridDim.x} * kGroups) {
    const int64_t row = first + group;
    const bool active = row < task.rows;
    const RowStatistics statistics =
        measure_row<kLanes>(task.input + (active ? row : 0) * task.width, active ? task.width : 0,
                            lane, task.normalise, task.epsilon);
    if (!active) continue;
    const float peak = peak_of(statistics);
    if (is_finite_peak(peak)) largest = max(largest, exponent_of_peak(peak));
    if (task.statistics_kept && lane == 0) {
      memcpy(task.codes + row * task.row_code_bytes, &statistics, sizeof(statistics));
    }
  }
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, half));
  }
  if (threadIdx.x % kWarp == 0 && largest > kSmallestExponent) atomicMax(task.exponent, largest);
}

// The wire form of four numbers of a row, in place of their bits.
template <Codec kCodec>
__device__ __forceinline__ void code_quad(const EncodeTask& task, const float (&values)[4],
                                          float divisor, float inverse_power, float scale,
                                          uint64_t quad, uint32_t (&codes)[4]) {
  PhiloxBlock random = {};
  if (CodecTraits<kCodec>::kInteger && task.stochastic) {
    random = rounding_words(task.seed, task.stream, quad);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value = task.normalise ? values[i] / divisor : values[i];
    if constexpr (kCodec == Codec::kFp32) {
      codes[i] = bits_of_float(canonical_nan(value));
    } else if constexpr (kCodec == Codec::kBf16) {
      codes[i] = bfloat16_of_float(value);
    } else {
      const float scaled = clamped(value * inverse_power / scale, CodecTraits<kCodec>::kLevels);
      codes[i] =
          static_cast<uint32_t>(task.stochastic ? round_stochastically(scaled, random.word[i])
                                                : round_to_nearest(scaled));
    }
  }
}

template <Codec kCodec, int kLanes>
__global__ void __launch_bounds__(kThreads) encode_rows(const EncodeTask task) {
  constexpr bool kInteger = CodecTraits<kCodec>::kInteger;
  constexpr int kGroups = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const uint64_t quads = (static_cast<uint64_t>(task.width) + 3) / 4;
  const float inverse_power = kInteger ? power_of_two(-*task.exponent) : 1.0f;
  for (int64_t first = int64_t{blockIdx.x} * kGroups; first < task.rows;
       first += int64_t{gridDim.x} * kGroups) {
    const int64_t row = first + group;
    const bool active = row < task.rows;
    const float* input = task.input + (active ? row : 0) * task.width;
    uint8_t* row_codes = task.codes + (active ? row : 0) * task.row_code_bytes;
    RowStatistics statistics = {0, 1.0f};
    if (kInteger && task.statistics_kept) {
      if (active) memcpy(&statistics, row_codes, sizeof(statistics));
      __syncwarp();  // every lane has read them before the first one overwrites them
    } else if (kInteger || task.normalise) {
      statistics =
          measure_row<kLanes>(input, active ? task.width : 0, lane, task.normalise, task.epsilon);
    }
    if (!active) continue;
    RowScale scale = {0, false, 1.0f};
    if constexpr (kInteger) {
      scale = row_scale(peak_of(statistics), inverse_power, CodecTraits<kCodec>::kLevels);
      if (lane == 0) store_word<uint16_t>(task.scales + 2 * row, scale.half, 2, false);
    }
#pragma unroll 2
    for (int column = 4 * lane; column < task.width; column += 4 * kLanes) {
      const int count = min(4, task.width - column);
      uint32_t codes[4] = {};
      if (!scale.silent) {
        float values[4];
        load_floats(input + column, count, task.aligned_input, values);
        code_quad<kCodec>(task, values, statistics.divisor, inverse_power, scale.scale,
                          static_cast<uint64_t>(row) * quads + static_cast<uint64_t>(column) / 4,
                          codes);
      }
      // Columns past the end were loaded as zeros and code to 0: so does an int4 row's padding.
      store_quad<kCodec>(row_codes + column * int64_t{CodecTraits<kCodec>::kBits} / 8, codes, count,
                         task.aligned_codes);
    }
  }
}

// ---- decode

template <Codec kCodec, int kLanes>
__global__ void __launch_bounds__(kThreads) decode_rows(const DecodeTask task) {
  constexpr int kGroups = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const float power = power_of_two(task.exponent);
  for (int64_t row = int64_t{blockIdx.x} * kGroups + group; row < task.rows;
       row += int64_t{gridDim.x} * kGroups) {
    const uint8_t* row_codes = task.codes + row * task.row_code_bytes;
    float* output = task.output + row * task.width;
    float scale = 1.0f;
    if constexpr (CodecTraits<kCodec>::kInteger) {
      scale = float_of_half(load_word<uint16_t>(task.scales + 2 * row, 2, false));
    }
#pragma unroll 2
    for (int column = 4 * lane; column < task.width; column += 4 * kLanes) {
      const int count = min(4, task.width - column);
      float values[4];
      load_quad<kCodec>(row_codes + column * int64_t{CodecTraits<kCodec>::kBits} / 8, count,
                        task.aligned_codes, scale, power, values);
      if (task.aligned_output) {
        *reinterpret_cast<float4*>(output + column) =
            make_float4(values[0], values[1], values[2], values[3]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) output[column + i] = values[i];
      }
    }
  }
}

// ---- launch

template <int kLanes_>
struct Lanes {
  static constexpr int kLanes = kLanes_;
};
template <Codec kCodec_>
struct CodecTag {
  static constexpr Codec kCodec = kCodec_;
};

// A lane should have one quad of a row, or a few; a group should not have idle lanes.
template <class Function>
cudaError_t with_lanes(int64_t width, Function function) {
  if (width <= 16) return function(Lanes<4>{});
  if (width <= 32) return function(Lanes<8>{});
  if (width <= 128) return function(Lanes<16>{});
  return function(Lanes<32>{});
}

template <class Function>
cudaError_t with_codec(Codec codec, Function function) {
  switch (codec) {
    case Codec::kFp32:
      return function(CodecTag<Codec::kFp32>{});
    case Codec::kBf16:
      return function(CodecTag<Codec::kBf16>{});
    case Codec::kInt8:
      return function(CodecTag<Codec::kInt8>{});
    case Codec::kInt4:
      return function(CodecTag<Codec::kInt4>{});
  }
  return cudaErrorInvalidValue;
}

// Blocks for `rows` rows of which each block takes kThreads / lanes at a time.
int64_t blocks_for(int64_t rows, int lanes) {
  const int64_t rows_per_block = kThreads / lanes;
  const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  return blocks < kMaximumBlocks ? blocks : kMaximumBlocks;
}

bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Bytes of four codes.
size_t quad_bytes(Codec codec) { return static_cast<size_t>(bits_of(codec)) / 2; }

bool are_valid_sizes(int64_t rows, int64_t width) {
  return rows >= 0 && width >= 1 && width <= kMaximumWidth;
}

EncodeTask task_of(const EncodeParams& params) {
  const size_t width = static_cast<size_t>(params.width);
  EncodeTask task = {};
  task.input = params.input;
  task.rows = params.rows;
  task.width = static_cast<int32_t>(params.width);
  task.normalise = params.normalise;
  task.stochastic = params.stochastic;
  task.epsilon = params.epsilon;
  task.seed = params.seed;
  task.stream = params.stream;
  task.scales = params.payload;
  task.codes = params.payload + scale_bytes(params.codec, static_cast<size_t>(params.rows));
  task.row_code_bytes = row_code_bytes(params.codec, width);
  task.exponent = params.exponent;
  task.statistics_kept = has_scales(params.codec) && task.row_code_bytes >= sizeof(RowStatistics);
  task.aligned_input = width % 4 == 0 && is_aligned(params.input, 16);
  task.aligned_codes = width % 4 == 0 && is_aligned(task.codes, quad_bytes(params.codec));
  return task;
}

}  // namespace

int encode_cuda(const EncodeParams& params, void* stream_handle) {
  if (!are_valid_sizes(params.rows, params.width) || params.exponent == nullptr ||
      (params.rows > 0 && (params.input == nullptr || params.payload == nullptr)) ||
      (params.normalise && !(params.epsilon > 0.0f))) {
    return cudaErrorInvalidValue;
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const bool integer = has_scales(params.codec);
  const cudaError_t error =
      launch(set_exponent, 1, 1, stream, params.exponent, integer ? kSmallestExponent : 0);
  if (error != cudaSuccess || params.rows == 0) return error;
  const EncodeTask task = task_of(params);
  return with_lanes(params.width, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::kLanes;
    const int64_t blocks = blocks_for(params.rows, kLanes);
    if (integer) {
      const cudaError_t measured = launch(measure_rows<kLanes>, blocks, kThreads, stream, task);
      if (measured != cudaSuccess) return measured;
    }
    return with_codec(params.codec, [&](auto codec) {
      return launch(encode_rows<decltype(codec)::kCodec, kLanes>, blocks, kThreads, stream, task);
    });
  });
}

int decode_cuda(const DecodeParams& params, void* stream_handle) {
  if (!are_valid_sizes(params.rows, params.width) ||
      (params.rows > 0 && (params.output == nullptr || params.payload == nullptr))) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  const size_t width = static_cast<size_t>(params.width);
  DecodeTask task = {};
  task.scales = params.payload;
  task.codes = params.payload + scale_bytes(params.codec, static_cast<size_t>(params.rows));
  task.row_code_bytes = row_code_bytes(params.codec, width);
  task.rows = params.rows;
  task.width = static_cast<int32_t>(params.width);
  task.exponent = params.exponent;
  task.aligned_codes = width % 4 == 0 && is_aligned(task.codes, quad_bytes(params.codec));
  task.aligned_output = width % 4 == 0 && is_aligned(params.output, 16);
  task.output = params.output;
  return with_lanes(params.width, [&](auto lanes) {
    return with_codec(params.codec, [&](auto codec) {
      constexpr int kLanes = decltype(lanes)::kLanes;
      return launch(decode_rows<decltype(codec)::kCodec, kLanes>, blocks_for(params.rows, kLanes),
                    kThreads, static_cast<cudaStream_t>(stream_handle), task);
    });
  });
}

}  // namespace tessera::kernels
