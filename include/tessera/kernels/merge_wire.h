// What a merge puts on the wire: runs of fp32 values as blocks of bytes, and the reduction of them.
//
// A block is `block_values` values (a multiple of kMergeGroup; only the last block of a stage may
// have fewer), and is coded alone, so that any block can be fetched, checked and reduced alone.
// Bytes of a block of n values, little-endian; a group is kMergeGroup values, the last may be
// shorter:
//   fp32        n floats
//   bf16        n bfloat16
//   int8, int4  ceil(n / kMergeGroup) fp32 scales, then n two's complement bytes, or
//               ceil(n / 2) bytes of nibbles (even value low, an odd end padded with zero)
//
// Integer formats, a group with a = max(|x|), q = 127 (int8) or 7 (int4):
//   scale = max(a / q, 2^-126: fp32's smallest normal number); 0 for a group of zeros
//   code  = round(clamp(x / scale, -q, q))
//   value = code * scale
// Error: to nearest at most scale / 2 (and 2^-22 of the value), stochastically less than a scale.
// round: to nearest even; or stochastically floor(v) + [u < v - floor(v)], u = the top 24 bits of a
//   word of Philox4x32-10 as a fraction: key = `seed`, counter = (quad, block), where four
//   neighbouring values of a block share the quad value / 4 and take its words in order. bf16
//   stochastically: the low 16 bits of the word are added below the kept bits, which are cut off.
//   fp32 ignores it.
//
// Not finite: fp32 and bf16 keep infinities and have one NaN; a group of int8 or int4 that holds a
// NaN or an infinity has scale NaN (7fc00000) and codes 0, and decodes to NaN in every value. Finite
// values within 2^-22 of fp32's largest may decode to infinity.
//
// CPU and CUDA give the same bytes and bits, however a run is cut into calls at block boundaries
// (so any number of threads may share it). The CPU versions are single-threaded; what breaks the
// rules is TESSERA_CHECK there and cudaErrorInvalidValue (1) from the CUDA versions, which take
// device pointers, launch in stream order and neither allocate nor wait. C++17: CUDA includes this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/base/codec.h"

namespace tessera::kernels {

inline constexpr uint64_t kMergeGroup = 256;
inline constexpr uint64_t kMaximumMergeBlock = uint64_t{1} << 18;
// Inputs of a trimmed mean.
inline constexpr uint32_t kMaximumTrimmedInputs = 128;

// Bytes of one block of `values` values.
constexpr uint64_t merge_block_bytes(Codec format, uint64_t values) {
  const uint64_t scales =
      has_scales(format) ? (values + kMergeGroup - 1) / kMergeGroup * sizeof(float) : 0;
  return scales + (values * static_cast<uint64_t>(bits_of(format)) + 7) / 8;
}
// Bytes of a run of `values` values in blocks of `block_values`.
constexpr uint64_t merge_run_bytes(Codec format, uint64_t values, uint64_t block_values) {
  const uint64_t rest = values % block_values;
  return values / block_values * merge_block_bytes(format, block_values) +
         (rest > 0 ? merge_block_bytes(format, rest) : 0);
}

// A run of values that begins at a block boundary.
struct MergeRun {
  Codec format = Codec::kInt8;
  uint64_t values = 0;  // may be 0
  uint64_t block_values = 16384;
};

struct MergeEncodeParams {
  MergeRun run;
  const float* input = nullptr;  // [run.values]
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t first_block = 0;    // number of the run's first block within the stage
  const uint64_t* numbers = nullptr;  // one a block of the run, if they do not follow each other
  uint8_t* payload = nullptr;  // [merge_run_bytes()], at a multiple of 4; no overlap with the input
  // [run.values], or null: what the format leaves out of the input, 0 where that is not finite. On the CPU only.
  float* residual = nullptr;
};
void merge_encode_cpu(const MergeEncodeParams& params);
int merge_encode_cuda(const MergeEncodeParams& params, void* stream_handle);

// Error feedback: adds to values what earlier encodings left out of them, group by group no more than about what encoding these
// leaves out: the residual is scaled down to the root of the sum of min(value^2, step^2 / 6) (int8, int4: step is the scale of the
// group without the residual; rounding errors have step^2 / 12) or of (2^-9 value)^2 (bf16). So what is encoded is off by less
// than twice what the format rounds off `values` alone, however large what was encoded before. `rest` is what stays for the next
// time. A group that is not finite gets nothing, a residual that is not is forgotten; fp32 leaves nothing out. CPU only.
struct MergeFeedbackParams {
  MergeRun run;
  const float* residual = nullptr;  // [run.values]
  float* values = nullptr;          // [run.values]
  float* rest = nullptr;            // [run.values]
};
void merge_feedback_cpu(const MergeFeedbackParams& params);

// sum[i] = sum[i] + weight * value[i]: product and sum are rounded separately. With `assign` set the
// value itself is stored, and `weight` ignored. Any payload of the right size is decoded without
// harm. `payload` at a multiple of 4, no overlap.
struct MergeDecodeParams {
  MergeRun run;
  const uint8_t* payload = nullptr;
  float weight = 1.0f;
  bool assign = false;
  float* sum = nullptr;  // [run.values]
};
void merge_decode_cpu(const MergeDecodeParams& params);
int merge_decode_cuda(const MergeDecodeParams& params, void* stream_handle);

// dots[b] = the sum over block b of a[i] * b[i], in double precision: kMergeGroup lanes (lane l adds
// the values l, l + kMergeGroup, ... of the block in order), then the lanes by halves. The products
// of two floats are exact in double.
struct MergeDotsParams {
  uint64_t values = 0;
  uint64_t block_values = 16384;
  const float* a = nullptr;
  const float* b = nullptr;  // may be a
  uint64_t b_values = 0;     // whole blocks after which b begins anew; 0: it is as long as a
  double* dots = nullptr;    // one a block
};
void merge_dots_cpu(const MergeDotsParams& params);
int merge_dots_cuda(const MergeDotsParams& params, void* stream_handle);

// What gives every input's block the length `weight`, and leaves out those that have no direction:
// factors[k][b] = weights[k] / sqrt(energies[k][b]) in double precision, rounded to fp32; NaN if the
// energy is not finite or at most kSmallestMergeEnergy, whose reciprocal would leave fp32's range.
inline constexpr double kSmallestMergeEnergy = 1e-60;
struct MergeFactorsParams {
  uint64_t blocks = 0;
  uint32_t input_count = 0;
  const float* weights = nullptr;    // [input_count]
  const double* energies = nullptr;  // [input_count][blocks]
  float* factors = nullptr;          // [input_count][blocks]
};
void merge_factors_cpu(const MergeFactorsParams& params);
int merge_factors_cuda(const MergeFactorsParams& params, void* stream_handle);

// out[i] = (((0 + f[0][b] u[0][i]) + f[1][b] u[1][i]) + ...), b the block of i, rounded separately,
// without the inputs whose factor is NaN: what is in them does not matter.
struct MergeScaledSumParams {
  uint64_t values = 0;
  uint64_t block_values = 16384;
  const float* const* inputs = nullptr;  // for CUDA an array in device memory
  uint32_t input_count = 0;
  const float* factors = nullptr;  // [input_count][blocks]
  float* out = nullptr;            // no overlap with an input
};
void merge_scaled_sum_cpu(const MergeScaledSumParams& params);
int merge_scaled_sum_cuda(const MergeScaledSumParams& params, void* stream_handle);

// out[i] = mean of inputs[k][i] without the `trim` smallest and the `trim` largest, added in
// ascending order from +0. Robust against `trim` inputs of any value; weights have no part in it.
// NaNs count as beyond the infinity of their sign. 2 * trim < input_count <= kMaximumTrimmedInputs.
struct TrimmedMeanParams {
  const float* const* inputs = nullptr;  // for CUDA an array in device memory
  uint32_t input_count = 0;
  uint32_t trim = 0;
  uint64_t values = 0;
  float* out = nullptr;
};
void trimmed_mean_cpu(const TrimmedMeanParams& params);
int trimmed_mean_cuda(const TrimmedMeanParams& params, void* stream_handle);

}  // namespace tessera::kernels
