// What the tests of the optimizer kernels share: flat vectors of a stage with odd segments, and the
// formulas written a second time in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tessera/base/prng.h"
#include "tessera/kernels/optimizer.h"

namespace tessera::kernels {

inline std::vector<float> random_values(int64_t count, double magnitude, uint64_t seed) {
  Prng prng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(magnitude * (2 * prng.uniform() - 1));
  }
  return values;
}

// Segments of very different lengths that tile [0, count), every other one decaying.
inline std::vector<OptimizerSegment> odd_segments(int64_t count) {
  constexpr int64_t kLengths[] = {5, 1, 8, 1023, 3, 8192, 20000, 2, 16385};
  std::vector<OptimizerSegment> segments;
  int64_t offset = 0;
  for (size_t i = 0; offset < count; ++i) {
    const int64_t length = std::min(kLengths[i % std::size(kLengths)], count - offset);
    segments.push_back({offset, length, i % 2 == 0});
    offset += length;
  }
  return segments;
}

// All of a vector, as the norm takes it.
inline std::vector<OptimizerChunk> whole_chunks(int64_t count) {
  return optimizer_chunks({{0, count, false}});
}

// Where pieces of very different lengths begin that tile [0, count).
inline std::vector<int64_t> odd_pieces(int64_t count) {
  constexpr int64_t kLengths[] = {3, 1, 9000, 4, 8192, 1021, 16};
  std::vector<int64_t> starts;
  int64_t offset = 0;
  for (size_t i = 0; offset < count; offset += kLengths[i++ % std::size(kLengths)]) {
    starts.push_back(offset);
  }
  return starts;
}

inline std::vector<std::vector<float>> in_pieces(const std::vector<float>& flat,
                                                 const std::vector<int64_t>& starts) {
  std::vector<std::vector<float>> pieces;
  for (size_t i = 0; i < starts.size(); ++i) {
    const auto begin = flat.begin() + starts[i];
    pieces.emplace_back(begin, i + 1 < starts.size() ? flat.begin() + starts[i + 1] : flat.end());
  }
  return pieces;
}

struct AdamState {
  std::vector<float> values, gradient, first, second;
};

// The second moment is never negative.
inline AdamState random_state(int64_t count, uint64_t seed, double gradient_magnitude = 1) {
  AdamState state;
  state.values = random_values(count, 0.1, seed);
  state.gradient = random_values(count, gradient_magnitude, seed + 1);
  state.first = random_values(count, 0.3 * gradient_magnitude, seed + 2);
  state.second = random_values(count, 0.1 * gradient_magnitude * gradient_magnitude, seed + 3);
  for (float& value : state.second) value = std::abs(value);
  return state;
}

// Zeros, subnormal and very small numbers, and numbers whose squares are near the top of fp32's
// range, in every place. Finite.
inline AdamState extreme_state(int64_t count) {
  constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
  constexpr float kNumbers[] = {0.0f,    -0.0f, kSmallest, -3 * kSmallest, 0x1p-130f, 1e-30f,
                                -1e-20f, 1.0f,  -1e10f,    1e18f,          -9e18f};
  constexpr size_t kCount = std::size(kNumbers);
  AdamState state;
  for (int64_t i = 0; i < count; ++i) {
    const size_t at = static_cast<size_t>(i);
    state.values.push_back(kNumbers[(at * 3 + at / kCount) % kCount]);
    state.gradient.push_back(kNumbers[at % kCount]);
    state.first.push_back(kNumbers[(at / kCount) % kCount]);
    const float root = kNumbers[(at / 7) % kCount];
    state.second.push_back(root * root);
  }
  return state;
}

inline AdamSettings usual_settings() {
  AdamSettings settings;
  settings.weight_decay = 0.1;
  settings.momentum_decay = 0.004;
  return settings;
}

inline double nadam_product(const AdamSettings& settings, uint64_t step) {
  double product = 1;
  for (uint64_t i = 1; i <= step; ++i) product *= nadam_momentum(settings, i);
  return product;
}

// Of both kinds, young and old.
inline std::vector<AdamConstants> all_constants() {
  const AdamSettings settings = usual_settings();
  std::vector<AdamConstants> constants;
  for (const uint64_t step : {1, 7, 5000}) {
    constants.push_back(adamw_constants(settings, 1e-3, step));
    constants.push_back(nadam_constants(settings, 1e-3, step, nadam_product(settings, step)));
  }
  return constants;
}

// Matrices of one shape that lie apart in a flat vector, at odd places.
struct MuonCase {
  int64_t count = 0;  // of the flat vector
  int64_t matrix_values = 0;
  std::vector<int64_t> offsets;
};

inline std::vector<MuonCase> muon_cases() {
  return {{40, 12, {4, 16, 28}},            // aligned
          {30000, 9000, {0, 9001, 20000}},  // one of them not
          {50001, 16385, {1, 20002}},       // more than a block, odd in the stack
          {9, 1, {8, 0, 3}},
          {70000, 8192, {8192, 61000, 16384}}};
}

// The matrices' gradients, two to a piece, the pieces in an order of their own and a number before
// and between the matrices.
struct PiecesOfMuon {
  PiecesOfMuon(const MuonCase& which, const std::vector<float>& gradient) {
    const size_t matrices = which.offsets.size();
    for (size_t i = 0; i < matrices; ++i) {
      if (i % 2 == 0) pieces.emplace_back();
      std::vector<float>& piece = pieces.back();
      piece.push_back(99);
      piece_of.push_back(static_cast<int32_t>(i / 2));
      offset_in.push_back(static_cast<int64_t>(piece.size()));
      const auto begin = gradient.begin() + which.offsets[i];
      piece.insert(piece.end(), begin, begin + which.matrix_values);
    }
    for (const std::vector<float>& piece : pieces) places.push_back(piece.data());
  }
  std::vector<std::vector<float>> pieces;
  std::vector<const float*> places;
  std::vector<int32_t> piece_of;
  std::vector<int64_t> offset_in;
};

// Constants of a usual step.
inline MuonParams muon_params(const MuonCase& which) {
  MuonParams params;
  params.matrices = static_cast<int64_t>(which.offsets.size());
  params.matrix_values = which.matrix_values;
  params.momentum_factor = 0.95f;
  params.momentum_rate = 0.05f;
  params.keep = 0.99f;
  params.step = 0.03f;
  return params;
}

}  // namespace tessera::kernels
