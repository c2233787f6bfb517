// The arithmetic of the stage kernels, shared by the CPU and the CUDA versions. C++17.
#pragma once

#include <cmath>
#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// ---- RMS normalisation

TESSERA_HOST_DEVICE float reciprocal_rms(float sum_of_squares, int64_t width, float epsilon) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(width) + epsilon);
}

// The gradient of n = v * rstd at v, from g, the gradient at n, and mean(g * n).
TESSERA_HOST_DEVICE float norm_gradient(float g, float n, float mean, float rstd) {
  return rstd * (g - n * mean);
}

// ---- anchor

// `scale` is channel_scale(rank).
TESSERA_HOST_DEVICE float anchored(float anchor, float gain, float channel, float scale) {
  return anchor + gain * (channel * scale);
}

inline float channel_scale(int64_t rank) { return 1.0f / std::sqrt(static_cast<float>(rank)); }

// ---- rotation

struct Pair {
  float a;
  float b;
};

TESSERA_HOST_DEVICE Pair rotated(float a, float b, float cosine, float sine) {
  return {a * cosine - b * sine, b * cosine + a * sine};
}

// ---- SwiGLU, with the sigmoid of the gate given

TESSERA_HOST_DEVICE float swiglu(float gate, float up, float sigmoid) {
  return gate * sigmoid * up;
}

TESSERA_HOST_DEVICE float swiglu_gate_gradient(float dh, float gate, float up, float sigmoid) {
  return dh * up * sigmoid * (1.0f + gate * (1.0f - sigmoid));
}

TESSERA_HOST_DEVICE float swiglu_up_gradient(float dh, float gate, float sigmoid) {
  return dh * gate * sigmoid;
}

}  // namespace tessera::kernels
