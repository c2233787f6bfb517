// The arithmetic of the optimizers, written once for the CPU and the CUDA version (C++17). Floats
// meet only +, -, *, / and sqrt; compilers must not contract them.
#pragma once

#include <cmath>

#include "codec_math.h"
#include "tessera/kernels/optimizer.h"

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

}  // namespace tessera::kernels
