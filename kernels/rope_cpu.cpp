// The reference of the rotary position kernels.
#include "real_access.h"
#include "stage_math.h"
#include "tessera/kernels/rope.h"

namespace tessera::kernels {
namespace {

int64_t row_width(const RopeShape& shape) {
  return (shape.heads + 2 * shape.key_heads) * shape.head_dim;
}

// Element `i` of the head of `tensor` at a row.
int64_t index_in(const HeadTensor& tensor, const RopeShape& shape, int64_t row, int64_t head,
                 int64_t i) {
  return row / shape.positions * tensor.sequence_stride +
         row % shape.positions * tensor.position_stride + head * tensor.head_stride + i;
}

}  // namespace

void rope_cpu(const RopeParams& params) {
  const RopeShape& shape = params.shape;
  TESSERA_CHECK(are_rope_sizes(shape));
  TESSERA_CHECK(shape.rows == 0 ||
                (params.cosine != nullptr && params.sine != nullptr && params.packed != nullptr));
  const int64_t half = shape.head_dim / 2;
  const float sign = params.inverse ? -1.0f : 1.0f;
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t table = row % shape.positions * half;
    for (int64_t head = 0; head < shape.heads + shape.key_heads; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        const int64_t at = row * row_width(shape) + head * shape.head_dim + i;
        const Pair pair = rotated(load_real(shape.type, params.packed, at),
                                  load_real(shape.type, params.packed, at + half),
                                  params.cosine[table + i], sign * params.sine[table + i]);
        store_real(shape.type, params.packed, at, pair.a);
        store_real(shape.type, params.packed, at + half, pair.b);
      }
    }
  }
}

void rope_pack_gradient_cpu(const RopePackParams& params) {
  const RopeShape& shape = params.shape;
  TESSERA_CHECK(are_rope_sizes(shape) && shape.rows % shape.positions == 0);
  TESSERA_CHECK(shape.rows == 0 || (params.cosine != nullptr && params.sine != nullptr &&
                                    params.packed != nullptr && params.dquery.data != nullptr &&
                                    params.dkey.data != nullptr && params.dvalue.data != nullptr));
  const auto copy = [&](const HeadTensor& tensor, int64_t heads, int64_t first_head) {
    for (int64_t row = 0; row < shape.rows; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t target = row * row_width(shape) + (first_head + head) * shape.head_dim;
        for (int64_t i = 0; i < shape.head_dim; ++i) {
          const int64_t source = index_in(tensor, shape, row, head, i);
          store_real(shape.type, params.packed, target + i,
                     load_real(shape.type, tensor.data, source));
        }
      }
    }
  };
  copy(params.dquery, shape.heads, 0);
  copy(params.dkey, shape.key_heads, shape.heads);
  copy(params.dvalue, shape.key_heads, shape.heads + shape.key_heads);
  rope_cpu({shape, params.cosine, params.sine, /*inverse=*/true, params.packed});
}

}  // namespace tessera::kernels
