// The reference of the SwiGLU kernels.
#include <cmath>

#include "real_access.h"
#include "stage_math.h"
#include "tessera/kernels/swiglu.h"

namespace tessera::kernels {
namespace {

void check_sizes(int64_t rows, int64_t width) {
  TESSERA_CHECK(rows >= 0);
  TESSERA_CHECK(width >= 1 && width <= kMaximumSwigluWidth);
}

float sigmoid(float value) { return 1.0f / (1.0f + std::exp(-value)); }

}  // namespace

void swiglu_forward_cpu(const SwigluForwardParams& params) {
  check_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rows == 0 || (params.gate_up != nullptr && params.h != nullptr));
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t column = 0; column < params.width; ++column) {
      const int64_t at = row * 2 * params.width + column;
      const float gate = load_real(params.type, params.gate_up, at);
      const float up = load_real(params.type, params.gate_up, at + params.width);
      store_real(params.type, params.h, row * params.width + column,
                 swiglu(gate, up, sigmoid(gate)));
    }
  }
}

void swiglu_backward_cpu(const SwigluBackwardParams& params) {
  check_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rows == 0 ||
                (params.gate_up != nullptr && params.dh != nullptr && params.dgate_up != nullptr));
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t column = 0; column < params.width; ++column) {
      const int64_t at = row * 2 * params.width + column;
      const int64_t h_at = row * params.width + column;
      const float gate = load_real(params.type, params.gate_up, at);
      const float up = load_real(params.type, params.gate_up, at + params.width);
      const float dh = load_real(params.type, params.dh, h_at);
      const float s = sigmoid(gate);
      store_real(params.type, params.dgate_up, at, swiglu_gate_gradient(dh, gate, up, s));
      store_real(params.type, params.dgate_up, at + params.width, swiglu_up_gradient(dh, gate, s));
      if (params.h != nullptr) store_real(params.type, params.h, h_at, swiglu(gate, up, s));
    }
  }
}

}  // namespace tessera::kernels
