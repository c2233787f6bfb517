// Matrix products of the stage: row-major, one call each for what forward, input gradient and weight
// gradient need. On CUDA by cuBLASLt, with the fastest of its kernels for each shape; on a CPU by
// ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>

namespace tessera::model {

// One per device and thread of use. Throws what torch throws (c10::Error); out of memory too.
class MatrixProduct {
 public:
  // `tune`: measure cuBLASLt's candidates at the first call of a shape and keep the fastest (some
  // tens of milliseconds a shape). Else the library's first choice, which is the same in every
  // process: what a run that must repeat bit for bit needs.
  MatrixProduct(const at::Device& device, bool tune);
  ~MatrixProduct();
  MatrixProduct(MatrixProduct&&) noexcept;

  // out [N, o] = x [N, i] weight^T [i, o] (+ addend [N, o]). All of one type; `addend` may be
  // undefined, or `out` itself.
  void forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
               const at::Tensor& addend = {});
  // out [N, i] = y [N, o] weight [o, i].
  void input_gradient(const at::Tensor& out, const at::Tensor& y, const at::Tensor& weight);
  // out [o, i] fp32 = y^T [o, N] x [N, i], or added to what is there.
  void weight_gradient(const at::Tensor& out, const at::Tensor& y, const at::Tensor& x,
                       bool accumulate);

 private:
  struct Shape;
  struct Plan;
  class Library;
  void multiply(const Shape& shape, const void* first, const void* second, const void* addend,
                void* out);
  Plan make_plan(const Shape& shape, const void* first, const void* second, const void* addend,
                 void* out);

  at::Device device_;
  bool tune_ = false;
  std::unique_ptr<Library> library_;
};

}  // namespace tessera::model
