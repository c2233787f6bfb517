// The anchored boundary's kernels run on either side with the same numbers.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/anchor.h"

namespace tessera::kernels {

struct AnchorCase {
  Real type = Real::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t vocabulary = 0;  // 0: anchors given row by row
  bool keep_u = true;
  bool in_place = false;  // u over the channel's copy; du over dy, dchannel over the channel
  bool accumulate = false;
  size_t offset = 0;
};

constexpr int64_t kAnchorRank = 20;

struct AnchorNumbers {
  std::vector<float> anchor, channel, gain, dy, before;
  std::vector<int32_t> ids;
};

inline AnchorNumbers anchor_numbers(const AnchorCase& c, uint64_t seed) {
  AnchorNumbers numbers;
  const bool table = c.vocabulary > 0;
  numbers.anchor = random_reals(c.type, table ? c.vocabulary : c.rows, c.width, seed);
  numbers.channel = random_reals(c.type, c.rows, c.width, seed + 1);
  numbers.gain = random_reals(c.type, 1, c.width, seed + 2);
  numbers.dy = random_reals(c.type, c.rows, c.width, seed + 3);
  numbers.before = random_rows(1, c.width, seed + 4);
  Prng prng(seed);
  for (int64_t row = 0; row < c.rows && table; ++row) {
    numbers.ids.push_back(static_cast<int32_t>(prng.below(static_cast<uint64_t>(c.vocabulary))));
  }
  return numbers;
}

struct AnchorForward {
  std::vector<float> u, y, rstd;
};

template <class Bytes, class Launch>
AnchorForward anchor_forward(const AnchorCase& c, const AnchorNumbers& numbers, Launch launch) {
  Reals<Bytes> anchor(c.type, numbers.anchor, c.offset);
  Array<Bytes, int32_t> ids(numbers.ids);
  Reals<Bytes> channel(c.type, numbers.channel, c.offset);
  Reals<Bytes> gain(c.type, numbers.gain, c.offset);
  Reals<Bytes> u(c.type, numbers.channel.size(), c.offset);
  Reals<Bytes> y(c.type, numbers.channel.size(), c.offset);
  Array<Bytes, float> rstd(static_cast<size_t>(c.rows));
  Reals<Bytes>& kept = c.in_place ? channel : u;
  AnchorForwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.rank = kAnchorRank;
  params.anchor = {anchor.data(), ids.data_or_null(), c.vocabulary};
  params.channel = channel.data();
  params.gain = gain.data();
  params.u = c.keep_u ? kept.data() : nullptr;
  params.y = y.data();
  params.rstd = rstd.data();
  launch(params);
  AnchorForward result = {{}, y.values(), rstd.values()};
  if (c.keep_u) result.u = kept.values();
  return result;
}

struct AnchorBackward {
  std::vector<float> du, dchannel, gain_gradient;
};

// From the reference's u and rstd.
template <class Bytes, class Launch>
AnchorBackward anchor_backward(const AnchorCase& c, const AnchorNumbers& numbers,
                               const AnchorForward& forward, Launch launch) {
  Reals<Bytes> u(c.type, forward.u, c.offset);
  Reals<Bytes> anchor(c.type, numbers.anchor, c.offset);
  Array<Bytes, int32_t> ids(numbers.ids);
  Reals<Bytes> channel(c.type, numbers.channel, c.offset);
  Reals<Bytes> gain(c.type, numbers.gain, c.offset);
  Array<Bytes, float> rstd(forward.rstd);
  Reals<Bytes> dy(c.type, numbers.dy, c.offset);
  Reals<Bytes> du(c.type, numbers.dy.size(), c.offset);
  Reals<Bytes> dchannel(c.type, numbers.dy.size(), c.offset);
  Array<Bytes, float> gain_gradient(numbers.before);
  Array<Bytes, float> partials(static_cast<size_t>(anchor_partial_rows(c.rows, c.width) * c.width));
  AnchorBackwardParams params;
  params.type = c.type;
  params.rows = c.rows;
  params.width = c.width;
  params.rank = kAnchorRank;
  params.u = c.keep_u ? u.data() : nullptr;
  params.anchor = {anchor.data(), ids.data_or_null(), c.vocabulary};
  params.channel = channel.data();
  params.gain = gain.data();
  params.rstd = rstd.data();
  params.dy = dy.data();
  params.du = c.in_place ? dy.data() : du.data();
  params.dchannel = c.in_place ? channel.data() : dchannel.data();
  params.gain_gradient = gain_gradient.data();
  params.accumulate = c.accumulate;
  params.partials = partials.data();
  launch(params);
  return {c.in_place ? dy.values() : du.values(), c.in_place ? channel.values() : dchannel.values(),
          gain_gradient.values()};
}

// What errors are relative to, from u (unrounded is near enough) and rstd: by row for u and du, by
// column for the gain's gradient.
struct AnchorScales {
  std::vector<double> u, du, dchannel, gain_gradient;
};

inline AnchorScales anchor_scales(const AnchorCase& c, const AnchorNumbers& numbers,
                                  const AnchorForward& forward) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(kAnchorRank));
  AnchorScales scales;
  scales.gain_gradient.resize(static_cast<size_t>(c.width));
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t anchor = c.vocabulary > 0 ? numbers.ids[row] : row;
    const bool known = c.vocabulary == 0 || (anchor >= 0 && anchor < c.vocabulary);
    double widest = 0.0;
    double peak = 0.0;
    for (int64_t i = 0; i < c.width; ++i) {
      const double term = std::abs(numbers.channel[row * c.width + i] * scale * numbers.gain[i]);
      const double u = known ? std::abs(double{numbers.anchor[anchor * c.width + i]}) + term : 0.0;
      scales.u.push_back(u);
      widest = std::max(widest, u);
      peak = std::max(peak, std::abs(double{numbers.dy[row * c.width + i]}));
    }
    widest *= forward.rstd[row];
    const double du = forward.rstd[row] * peak * (1.0 + widest * widest);
    for (int64_t i = 0; i < c.width; ++i) {
      scales.du.push_back(std::isfinite(du) ? du : 0.0);
      scales.dchannel.push_back(scales.du.back() * scale * std::abs(numbers.gain[i]));
      scales.gain_gradient[i] +=
          scales.du.back() * scale * std::abs(numbers.channel[row * c.width + i]);
    }
  }
  for (int64_t i = 0; i < c.width; ++i) {
    scales.gain_gradient[i] += std::abs(numbers.before[i]);
  }
  return scales;
}

}  // namespace tessera::kernels
