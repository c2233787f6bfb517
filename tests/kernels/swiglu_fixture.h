// The SwiGLU kernels run on either side with the same numbers.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/swiglu.h"

namespace tessera::kernels {

struct SwigluCase {
  Real type = Real::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  bool in_place = false;  // the gradient over gate_up, h over dh
  size_t offset = 0;
};

struct SwigluNumbers {
  std::vector<float> gate_up, dh;
};

inline SwigluNumbers swiglu_numbers(const SwigluCase& c, uint64_t seed) {
  return {random_reals(c.type, c.rows, 2 * c.width, seed),
          random_reals(c.type, c.rows, c.width, seed + 1)};
}

template <class Bytes, class Launch>
std::vector<float> swiglu_forward(const SwigluCase& c, const SwigluNumbers& numbers,
                                  Launch launch) {
  Reals<Bytes> gate_up(c.type, numbers.gate_up, c.offset);
  Reals<Bytes> h(c.type, numbers.dh.size(), c.offset);
  launch(SwigluForwardParams{c.type, c.rows, c.width, gate_up.data(), h.data()});
  return h.values();
}

struct SwigluGradient {
  std::vector<float> gate_up, h;
};

template <class Bytes, class Launch>
SwigluGradient swiglu_backward(const SwigluCase& c, const SwigluNumbers& numbers, Launch launch) {
  Reals<Bytes> gate_up(c.type, numbers.gate_up, c.offset);
  Reals<Bytes> dh(c.type, numbers.dh, c.offset);
  Reals<Bytes> gradient(c.type, numbers.gate_up.size(), c.offset);
  Reals<Bytes> h(c.type, numbers.dh.size(), c.offset);
  Reals<Bytes>& target = c.in_place ? gate_up : gradient;
  Reals<Bytes>& hidden = c.in_place ? dh : h;
  launch(SwigluBackwardParams{c.type, c.rows, c.width, dh.data(), gate_up.data(), target.data(),
                              hidden.data()});
  return {target.values(), hidden.values()};
}

// What errors are relative to. Below a gate of -87 the sigmoid may vanish too soon: its bound there
// is not relative.
struct SwigluScales {
  std::vector<double> h, gate_up;
};

inline SwigluScales swiglu_scales(const SwigluCase& c, const SwigluNumbers& numbers) {
  SwigluScales scales;
  scales.h.resize(numbers.dh.size());
  scales.gate_up.resize(numbers.gate_up.size());
  for (int64_t i = 0; i < c.rows * c.width; ++i) {
    const int64_t at = i / c.width * 2 * c.width + i % c.width;
    const double gate = numbers.gate_up[at];
    const double up = numbers.gate_up[at + c.width];
    const double sigmoid = 1.0 / (1.0 + std::exp(-gate)) + 0x1p-110;
    const double dh = numbers.dh[i];
    scales.h[i] = std::abs(gate * up) * sigmoid;
    scales.gate_up[at] = std::abs(dh * up) * sigmoid * (1.0 + std::abs(gate));
    scales.gate_up[at + c.width] = std::abs(dh * gate) * sigmoid;
  }
  return scales;
}

}  // namespace tessera::kernels
