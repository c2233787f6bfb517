// The arithmetic of the optimizers, written once for the CPU and the CUDA version (C++17). Floats
// meet only +, -, *, / and sqrt; compilers must not contract them.
#pragma once

#include <cmath>

#include "tessera/kernels/optimizer.h"
#include "tessera/kernels/real.h"

namespace tessera::kernels {

// Values that a chunk has at most.
constexpr int64_t kChunkValues = 8192;

// As torch.nn.utils.clip_grad_norm_ has it.
constexpr double kClipEpsilon = 1e-6;

TESSERA_HOST_DEVICE GradientNorm gradient_norm_of(double sum_of_squares, double microbatches,
                                                  double clip_norm) {
  GradientNorm result;
  result.norm = sqrt(sum_of_squares) / microbatches;
  result.finite = result.norm < HUGE_VAL ? 1 : 0;  // 0 for not-a-number too
  const double factor = clip_norm > 0 ? clip_norm / (result.norm + kClipEpsilon) : 1.0;
  result.scale = static_cast<float>((factor < 1.0 ? factor : 1.0) / microbatches);
  return result;
}

// One value; see the public header for the formula. `keep` is 1 where nothing decays.
TESSERA_HOST_DEVICE void adam_update(const AdamConstants& c, float scale, float keep,
                                     float accumulated, float& value, float& first, float& second) {
  const float gradient = accumulated * scale;
  first = c.beta1 * first + c.first_rate * gradient;
  second = c.beta2 * second + c.second_rate * (gradient * gradient);
  const float direction = c.gradient_weight * gradient + c.moment_weight * first;
  value = value * keep - direction / (sqrtf(second) * c.root_scale + c.epsilon);
}

// What Newton-Schulz starts from.
TESSERA_HOST_DEVICE float muon_momentum_update(const MuonParams& p, float scale, float accumulated,
                                               float& momentum) {
  const float share = p.momentum_rate * (accumulated * scale);
  momentum = p.momentum_factor * momentum + share;
  return p.momentum_factor * momentum + share;
}

TESSERA_HOST_DEVICE float muon_applied(const MuonParams& p, float value, float direction) {
  return value * p.keep - p.step * direction;
}

// A chunk's numbers in the gradient.
TESSERA_HOST_DEVICE const float* gradient_of(const GradientPlaces& places,
                                             const OptimizerChunk& chunk) {
  return (places.flat != nullptr ? places.flat : places.pieces[chunk.piece]) +
         chunk.gradient_offset;
}

// A block's numbers in the flat vector, in the stack and in its matrix.
struct MuonBlock {
  int64_t flat;
  int64_t stack;
  int64_t count;
  int64_t matrix;
  int64_t first;
};

TESSERA_HOST_DEVICE MuonBlock muon_block(const MuonParams& p, int64_t index) {
  const int64_t blocks = (p.matrix_values + kMuonBlock - 1) / kMuonBlock;
  const int64_t matrix = index / blocks, first = index % blocks * kMuonBlock;
  const int64_t left = p.matrix_values - first;
  return {p.offsets[matrix] + first, matrix * p.matrix_values + first,
          left < kMuonBlock ? left : kMuonBlock, matrix, first};
}

TESSERA_HOST_DEVICE const float* gradient_of(const MuonParams& p, const MuonBlock& block) {
  if (p.gradient.flat != nullptr) return p.gradient.flat + block.flat;
  return p.gradient.pieces[p.gradient_pieces[block.matrix]] + p.gradient_offsets[block.matrix] +
         block.first;
}

}  // namespace tessera::kernels
