// The arithmetic of a local optimizer step over a stage's flat vectors: the gradient's norm with
// the clip factor that follows from it, Adam, and what Muon does before and after its matrix
// products.
//
// Adam (Kingma & Ba 2015; AdamW: Loshchilov & Hutter 2019; NAdam: Dozat 2016), for value p with the
// accumulated gradient a, s = GradientNorm.scale, all in fp32 and in this order:
//   g = a * s
//   m = beta1 * m + first_rate * g
//   v = beta2 * v + second_rate * (g * g)
//   p = p * keep - (gradient_weight * g + moment_weight * m) / (sqrt(v) * root_scale + epsilon)
// keep is 1 in chunks that do not decay. The kinds differ in two numbers: see adamw_constants() and
// nadam_constants(). The same pass writes p as the next compute weights, in fp32 or in bf16 (to
// nearest even).
//
// Given the same s, CPU and CUDA give the same bits: only + - * / and sqrt, nothing contracted or
// flushed. The norms agree within a bound, because the order of the sum differs
// (docs/numerics.md).
//
// A norm that is not finite (which is also what squares over fp32's range make) is a gradient to
// drop: values and moments then stay, and the compute weights are written from the values as they
// are. On the GPU nothing has to wait to know: the pass reads the verdict from device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tessera::kernels {

// ---- the gradient

// The accumulated gradient (the sum over the microbatches): one array as long as the flat vector,
// or pieces of it that lie apart, so that each can be taken and given back by itself.
struct GradientPlaces {
  const float* flat = nullptr;           // [count of the stage], or
  const float* const* pieces = nullptr;  // the first value of each piece
};

// A part of the flat vector, and whether weight decay applies to it.
struct OptimizerSegment {
  int64_t offset = 0;
  int64_t count = 0;
  bool decays = false;
};

// What one block of the GPU takes: never across two segments or two pieces.
struct OptimizerChunk {
  int64_t offset = 0;
  int64_t gradient_offset = 0;  // within the piece; `offset` where the gradient is flat
  int32_t count = 0;
  uint16_t decays = 0;
  uint16_t piece = 0;
};

// Cuts segments (in ascending order; neighbours that are alike become one) into chunks. What is in
// no segment is in no chunk and so is left alone. `pieces`: where each piece of the gradient begins
// in the flat vector, from 0 on, ascending, 65536 at most; none: the gradient is flat.
std::vector<OptimizerChunk> optimizer_chunks(const std::vector<OptimizerSegment>& segments,
                                             const std::vector<int64_t>& pieces = {});

// ---- the norm of the gradient

struct GradientNorm {
  double norm = 0;     // of the mean gradient, before clipping
  float scale = 0;     // what an accumulated number is multiplied by: the mean, and the clipping
  int32_t finite = 0;  // 0: the gradient must be dropped
};

struct NormParams {
  GradientPlaces gradient;
  const OptimizerChunk* chunks = nullptr;  // decay does not matter here
  int64_t chunk_count = 0;
  uint32_t microbatches = 1;   // >= 1
  double clip_norm = 0;        // 0: no clipping
  double* partials = nullptr;  // [chunk_count]
  GradientNorm* result = nullptr;
};

// Fills partials[begin, end): threads may share the work. Then finish_norm_cpu() adds chunk_count of
// them in order, so that the result does not depend on the number of threads.
void norm_partials_cpu(const NormParams& params, int64_t begin, int64_t end);
void finish_norm_cpu(const NormParams& params);

// ---- the step

struct AdamConstants {
  float beta1 = 0;
  float first_rate = 0;  // 1 - beta1
  float beta2 = 0;
  float second_rate = 0;  // 1 - beta2
  float gradient_weight = 0;
  float moment_weight = 0;
  float root_scale = 0;  // 1 / sqrt(1 - beta2^step)
  float epsilon = 0;
  float keep = 1;  // 1 - learning rate * weight decay
};

struct AdamSettings {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double momentum_decay = 0;  // NAdam only
};

// As torch.optim.AdamW has it. `step` is counted from 1.
AdamConstants adamw_constants(const AdamSettings& settings, double learning_rate, uint64_t step);
// As torch.optim.NAdam has it with decoupled_weight_decay. `momentum_product`: the product of
// nadam_momentum() over the steps 1 to `step`.
AdamConstants nadam_constants(const AdamSettings& settings, double learning_rate, uint64_t step,
                              double momentum_product);
// The coefficient mu of a step.
double nadam_momentum(const AdamSettings& settings, uint64_t step);

// Arrays must not overlap. All but the gradient [count of the stage].
struct AdamParams {
  const OptimizerChunk* chunks = nullptr;
  int64_t chunk_count = 0;
  float* values = nullptr;
  GradientPlaces gradient;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  float* weights_float = nullptr;        // either or neither
  uint16_t* weights_bfloat16 = nullptr;  // of the two
  AdamConstants constants;
  const GradientNorm* norm = nullptr;
};

// Chunks [begin, end) of params.chunks: threads may share the work.
void adam_step_cpu(const AdamParams& params, int64_t begin, int64_t end);

// ---- Muon

// Matrices of one shape, each somewhere in the flat vector, and side by side in `stack`. Muon
// (Jordan et al. 2024) of matrix i, in fp32 and in this order, with g = a * s as above:
//   m = momentum * m + rate * g          (rate = 1 - momentum)
//   u = momentum * m + rate * g          into the stack: Nesterov
//   o = Newton-Schulz(u)                 by the caller, in place of u
//   p = p * keep - step * o
// Both halves leave m and p alone if the norm is not finite; u is then 0.
struct MuonParams {
  const int64_t* offsets = nullptr;  // [matrices]: where each begins in the flat vector
  int64_t matrices = 0;
  int64_t matrix_values = 0;  // of each
  GradientPlaces gradient;
  // [matrices] where the gradient lies in pieces: the piece that holds each, and where in it.
  const int32_t* gradient_pieces = nullptr;
  const int64_t* gradient_offsets = nullptr;
  float* momentum = nullptr;
  float* values = nullptr;
  float* weights_float = nullptr;
  uint16_t* weights_bfloat16 = nullptr;
  // [matrices, matrix_values]: one of the two.
  float* stack_float = nullptr;
  uint16_t* stack_bfloat16 = nullptr;
  float momentum_factor = 0;
  float momentum_rate = 0;
  float keep = 1;
  float step = 0;
  const GradientNorm* norm = nullptr;
};

// Blocks of at most kMuonBlock values of a matrix: what threads share.
inline constexpr int64_t kMuonBlock = 8192;
inline constexpr int64_t muon_block_count(const MuonParams& params) {
  return params.matrices * ((params.matrix_values + kMuonBlock - 1) / kMuonBlock);
}

// Blocks [begin, end).
void muon_momentum_cpu(const MuonParams& params, int64_t begin, int64_t end);
void muon_apply_cpu(const MuonParams& params, int64_t begin, int64_t end);

// ---- CUDA

// Device pointers throughout. `stream_handle` is a cudaStream_t. Asynchronous, in stream order.
// Fastest with arrays at a multiple of 16 bytes. Return a cudaError_t (0: launched; 1,
// cudaErrorInvalidValue: a pointer that is missing).
int norm_partials_cuda(const NormParams& params, void* stream_handle);  // all of them
int finish_norm_cuda(const NormParams& params, void* stream_handle);
int adam_step_cuda(const AdamParams& params, void* stream_handle);
int muon_momentum_cuda(const MuonParams& params, void* stream_handle);
int muon_apply_cuda(const MuonParams& params, void* stream_handle);

}  // namespace tessera::kernels
