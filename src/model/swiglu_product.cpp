// Products of factors with SwiGLU at their end.
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "model/matrix_product.h"
#include "model/stage_ops.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>

#include "tessera/kernels/swiglu_product.h"
#endif

namespace tessera::model {

#ifdef TESSERA_WITH_CUDA
namespace {

// Whether a factor, which may be codes alone, and its partners are what the kernels read.
bool are_plain(const Factor& x, const Factor& weight, const at::Tensor& gate_up) {
  const auto is_plain = [](const at::Tensor& tensor) {
    return tensor.is_cuda() && tensor.scalar_type() == at::kBFloat16 && tensor.is_contiguous();
  };
  return x.values.defined() && weight.values.defined() && is_plain(x.values) &&
         is_plain(weight.values) && is_plain(gate_up);
}

void* stream_of(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}

void check_launched(int code) {
  TORCH_CHECK(code == 0, "a product with SwiGLU could not be launched: CUDA error ", code);
}

}  // namespace
#endif

at::Tensor MatrixProduct::forward_swiglu(const at::Tensor& gate_up, const Factor& x,
                                         const Factor& weight) {
#ifdef TESSERA_WITH_CUDA
  if (are_plain(x, weight, gate_up)) {
    const at::Tensor fed = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
    const kernels::SwigluProductForwardParams params = {fed.size(0),
                                                        fed.size(1),
                                                        x.values.size(1),
                                                        x.values.const_data_ptr(),
                                                        weight.values.const_data_ptr(),
                                                        gate_up.data_ptr(),
                                                        fed.data_ptr()};
    if (kernels::swiglu_product_forward_pays(params)) {
      check_launched(kernels::swiglu_product_forward_cuda(params, stream_of(gate_up)));
      return fed;
    }
  }
#endif
  forward(gate_up, x, weight);
  return swiglu_forward(gate_up);
}

at::Tensor MatrixProduct::input_gradient_swiglu(const at::Tensor& gate_up, const Factor& y,
                                                const Factor& weight, bool again) {
  at::Tensor fed;
  const auto make = [&] {
    return at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  };
#ifdef TESSERA_WITH_CUDA
  if (are_plain(y, weight, gate_up)) {
    if (again) fed = make();
    const kernels::SwigluProductBackwardParams params = {gate_up.size(0),
                                                         gate_up.size(1) / 2,
                                                         y.values.size(1),
                                                         y.values.const_data_ptr(),
                                                         weight.values.const_data_ptr(),
                                                         gate_up.data_ptr(),
                                                         again ? fed.data_ptr() : nullptr};
    if (kernels::swiglu_product_backward_pays(params)) {
      check_launched(kernels::swiglu_product_backward_cuda(params, stream_of(gate_up)));
      return fed;
    }
  }
#endif
  if (!fed.defined()) fed = make();
  input_gradient(fed, y, weight);
  swiglu_backward(fed, gate_up, again);
  return again ? fed : at::Tensor();
}

}  // namespace tessera::model
