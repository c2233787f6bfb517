// The rotary position kernels run on either side with the same numbers.
#pragma once

#include "kernels/real_fixture.h"
#include "tessera/kernels/rope.h"

namespace tessera::kernels {

struct RopeTables {
  std::vector<float> cosine, sine;
};

inline RopeTables rope_tables(int64_t positions, int64_t head_dim) {
  RopeTables tables;
  for (int64_t t = 0; t < positions; ++t) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      const double angle =
          static_cast<double>(t) *
          std::pow(10'000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      tables.cosine.push_back(static_cast<float>(std::cos(angle)));
      tables.sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return tables;
}

inline int64_t packed_width(const RopeShape& shape) {
  return (shape.heads + 2 * shape.key_heads) * shape.head_dim;
}

inline std::string name_of(const RopeShape& shape) {
  return name_of(shape.type) + " " + std::to_string(shape.rows) + " rows of " +
         std::to_string(shape.positions) + " positions, " + std::to_string(shape.heads) + "/" +
         std::to_string(shape.key_heads) + " heads of " + std::to_string(shape.head_dim);
}

template <class Bytes, class Launch>
std::vector<float> rope(const RopeShape& shape, const RopeTables& tables, bool inverse,
                        const std::vector<float>& numbers, size_t offset, Launch launch) {
  Reals<Bytes> packed(shape.type, numbers, offset);
  Array<Bytes, float> cosine(tables.cosine, offset);
  Array<Bytes, float> sine(tables.sine, offset);
  launch(RopeParams{shape, cosine.data(), sine.data(), inverse, packed.data()});
  return packed.values();
}

// [B, T, H, D] or, `head_major`, [B, H, T, D].
inline HeadTensor head_tensor(const RopeShape& shape, int64_t heads, bool head_major,
                              const void* data) {
  const int64_t sequence = heads * shape.positions * shape.head_dim;
  if (head_major) return {data, sequence, shape.head_dim, shape.positions * shape.head_dim};
  return {data, sequence, heads * shape.head_dim, shape.head_dim};
}

struct HeadGradients {
  std::vector<float> query, key, value;
};

inline HeadGradients head_gradients(const RopeShape& shape, uint64_t seed) {
  return {random_reals(shape.type, shape.rows, shape.heads * shape.head_dim, seed),
          random_reals(shape.type, shape.rows, shape.key_heads * shape.head_dim, seed + 1),
          random_reals(shape.type, shape.rows, shape.key_heads * shape.head_dim, seed + 2)};
}

template <class Bytes, class Launch>
std::vector<float> rope_pack(const RopeShape& shape, const RopeTables& tables, bool head_major,
                             const HeadGradients& gradients, size_t offset, Launch launch) {
  Reals<Bytes> query(shape.type, gradients.query, offset);
  Reals<Bytes> key(shape.type, gradients.key, offset);
  Reals<Bytes> value(shape.type, gradients.value, offset);
  Array<Bytes, float> cosine(tables.cosine, offset);
  Array<Bytes, float> sine(tables.sine, offset);
  Reals<Bytes> packed(shape.type, static_cast<size_t>(shape.rows * packed_width(shape)), offset);
  launch(RopePackParams{
      shape, cosine.data(), sine.data(), head_tensor(shape, shape.heads, head_major, query.data()),
      head_tensor(shape, shape.key_heads, head_major, key.data()),
      head_tensor(shape, shape.key_heads, head_major, value.data()), packed.data()});
  return packed.values();
}

// The largest number of the pair that a rotated number comes from, for each number of `packed`.
inline std::vector<double> pair_scales(const RopeShape& shape, const std::vector<float>& packed) {
  std::vector<double> scales(packed.size());
  const int64_t half = shape.head_dim / 2;
  for (int64_t i = 0; i < static_cast<int64_t>(packed.size()); ++i) {
    const int64_t other = i % shape.head_dim < half ? i + half : i - half;
    scales[i] = std::max(std::abs(double{packed[i]}), std::abs(double{packed[other]}));
    if (!std::isfinite(scales[i])) scales[i] = 0.0;
  }
  return scales;
}

}  // namespace tessera::kernels
