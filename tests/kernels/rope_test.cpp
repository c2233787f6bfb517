// The reference of the rotary position kernels against complex rotations in double precision.
#include <gtest/gtest.h>

#include <complex>

#include "kernels/rope_fixture.h"

namespace tessera::kernels {
namespace {

const auto kRotate = [](const RopeParams& p) { rope_cpu(p); };
const auto kPack = [](const RopePackParams& p) { rope_pack_gradient_cpu(p); };

std::vector<RopeShape> shapes(Real type) {
  return {{type, 1, 1, 1, 1, 2},   {type, 7, 4, 2, 1, 6},    {type, 12, 5, 4, 2, 16},
          {type, 9, 16, 3, 3, 34}, {type, 20, 10, 8, 2, 64}, {type, 5, 5, 1, 1, 128}};
}

// The table's pair as a number on the unit circle.
std::complex<double> turn(const RopeShape& shape, const RopeTables& tables, int64_t row,
                          int64_t i) {
  const int64_t at = row % shape.positions * (shape.head_dim / 2) + i;
  return {tables.cosine[at], tables.sine[at]};
}

// What `packed` becomes. `inverse`: by the conjugate.
std::vector<double> turned(const RopeShape& shape, const RopeTables& tables, bool inverse,
                           const std::vector<float>& packed) {
  std::vector<double> result = doubles(packed);
  const int64_t half = shape.head_dim / 2;
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t head = 0; head < shape.heads + shape.key_heads; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        const int64_t at = row * packed_width(shape) + head * shape.head_dim + i;
        std::complex<double> factor = turn(shape, tables, row, i);
        if (inverse) factor = std::conj(factor);
        const auto product = std::complex<double>(result[at], result[at + half]) * factor;
        result[at] = product.real();
        result[at + half] = product.imag();
      }
    }
  }
  return result;
}

TEST(Rope, TurnsPairsAndLeavesValues) {
  for (const Real type : kReals) {
    for (const RopeShape& shape : shapes(type)) {
      SCOPED_TRACE(name_of(shape));
      const RopeTables tables = rope_tables(shape.positions, shape.head_dim);
      const std::vector<float> packed = random_reals(type, shape.rows, packed_width(shape), 3);
      const std::vector<double> scales = pair_scales(shape, packed);
      for (const bool inverse : {false, true}) {
        expect_close(rope<HostBytes>(shape, tables, inverse, packed, 0, kRotate),
                     turned(shape, tables, inverse, packed), type,
                     [&](size_t i) { return 0x1p-22 * scales[i]; });
      }
    }
  }
}

TEST(Rope, TheInverseUndoesIt) {
  const RopeShape shape = {Real::kFloat32, 12, 6, 3, 2, 32};
  const RopeTables tables = rope_tables(shape.positions, shape.head_dim);
  const std::vector<float> packed = random_rows(shape.rows, packed_width(shape), 5);
  const std::vector<float> there = rope<HostBytes>(shape, tables, false, packed, 0, kRotate);
  const std::vector<double> scales = pair_scales(shape, packed);
  expect_close(rope<HostBytes>(shape, tables, true, there, 0, kRotate), doubles(packed),
               Real::kFloat32, [&](size_t i) { return 0x1p-20 * scales[i]; });
}

TEST(Rope, PacksGradientsOfEitherLayout) {
  for (const Real type : kReals) {
    for (RopeShape shape : shapes(type)) {
      shape.rows = 2 * shape.positions;
      SCOPED_TRACE(name_of(shape));
      const RopeTables tables = rope_tables(shape.positions, shape.head_dim);
      const HeadGradients gradients = head_gradients(shape, 6);
      for (const bool head_major : {false, true}) {
        std::vector<float> packed;
        const auto append = [&](const std::vector<float>& from, int64_t heads, int64_t row) {
          const int64_t sequence = row / shape.positions;
          const int64_t t = row % shape.positions;
          for (int64_t head = 0; head < heads; ++head) {
            for (int64_t i = 0; i < shape.head_dim; ++i) {
              const int64_t line =
                  head_major ? (sequence * heads + head) * shape.positions + t : row * heads + head;
              packed.push_back(from[line * shape.head_dim + i]);
            }
          }
        };
        for (int64_t row = 0; row < shape.rows; ++row) {
          append(gradients.query, shape.heads, row);
          append(gradients.key, shape.key_heads, row);
          append(gradients.value, shape.key_heads, row);
        }
        const std::vector<double> scales = pair_scales(shape, packed);
        expect_close(rope_pack<HostBytes>(shape, tables, head_major, gradients, 0, kPack),
                     turned(shape, tables, true, packed), type,
                     [&](size_t i) { return 0x1p-22 * scales[i]; });
      }
    }
  }
}

TEST(RopeDeathTest, BrokenSizesAbort) {
  EXPECT_DEATH(rope_cpu({.shape = {Real::kFloat32, 1, 1, 1, 1, 3}}), "");
  EXPECT_DEATH(rope_cpu({.shape = {Real::kFloat32, 1, 0, 1, 1, 2}}), "");
  EXPECT_DEATH(rope_cpu({.shape = {Real::kFloat32, 1, 1, 1, 1, 2}}), "");
  RopePackParams params;
  params.shape = {Real::kFloat32, 3, 2, 1, 1, 2};
  EXPECT_DEATH(rope_pack_gradient_cpu(params), "");
}

}  // namespace
}  // namespace tessera::kernels
