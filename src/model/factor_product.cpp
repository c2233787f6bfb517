// Products of factors: of the tensors themselves, or of their 8-bit codes.
#include <utility>

#include "model/matrix_product.h"
#include "model/stage_ops.h"

namespace tessera::model {

Factor MatrixProduct::factor(const at::Tensor& values, FactorKind kind, bool rows,
                             bool columns) const {
  if (!fp8_) return {values, {}, {}, {}};
  const kernels::Fp8Format format =
      kind == FactorKind::kForward ? kernels::Fp8Format::kE4m3 : kernels::Fp8Format::kE5m2;
  Fp8Codes codes = fp8_codes(values, format, rows || values.is_cpu(), columns && values.is_cuda());
  if (values.is_cpu()) return {fp8_values(codes, format), {}, {}, {}};
  return {{}, std::move(codes.rows), std::move(codes.columns), std::move(codes.inverse_scale)};
}

void MatrixProduct::forward(const at::Tensor& out, const Factor& x, const Factor& weight,
                            const at::Tensor& addend) {
#ifdef TESSERA_WITH_CUDA
  if (x.rows.defined()) {
    return multiply_codes(out, weight.rows, weight.inverse_scale, x.rows, x.inverse_scale, addend,
                          /*fast_sums=*/true);
  }
#endif
  forward(out, x.values, weight.values, addend);
}

void MatrixProduct::input_gradient(const at::Tensor& out, const Factor& y, const Factor& weight) {
#ifdef TESSERA_WITH_CUDA
  if (y.rows.defined()) {
    return multiply_codes(out, weight.columns, weight.inverse_scale, y.rows, y.inverse_scale, {},
                          /*fast_sums=*/false);
  }
#endif
  input_gradient(out, y.values, weight.values);
}

void MatrixProduct::weight_gradient(const at::Tensor& out, const Factor& y, const Factor& x,
                                    bool accumulate) {
#ifdef TESSERA_WITH_CUDA
  if (y.columns.defined()) {
    return multiply_codes(out, x.columns, x.inverse_scale, y.columns, y.inverse_scale,
                          accumulate ? out : at::Tensor(), /*fast_sums=*/false);
  }
#endif
  weight_gradient(out, y.values, x.values, accumulate);
}

}  // namespace tessera::model
