// Matrix products of the stage: row-major, one call each for what forward, input gradient and weight
// gradient need. On CUDA by cuBLASLt, with the fastest of its kernels for each shape; on a CPU by
// ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>

namespace tessera::model {

// A factor of products: the tensor, or its 8-bit codes in the layouts that products read. A CPU has no
// products of codes; its factor is the tensor that they stand for.
struct Factor {
  at::Tensor values;         // [N, k]
  at::Tensor rows;           // codes [N, k]
  at::Tensor columns;        // codes of the transpose, [k, N]
  at::Tensor inverse_scale;  // [1] fp32
};
enum class FactorKind : uint8_t { kForward, kGradient };  // e4m3, e5m2

// One per device and thread of use. Throws what torch throws (c10::Error); out of memory too.
class MatrixProduct {
 public:
  // `tune`: measure cuBLASLt's candidates at the first call of a shape and keep the fastest (some
  // tens of milliseconds a shape). Else the library's first choice, which is the same in every
  // process: what a run that must repeat bit for bit needs.
  // `fp8`: factors are 8-bit codes.
  MatrixProduct(const at::Device& device, bool tune, bool fp8 = false);
  ~MatrixProduct();
  MatrixProduct(MatrixProduct&&) noexcept;

  bool takes_codes() const { return fp8_; }

  // out [N, o] = x [N, i] weight^T [i, o] (+ addend [N, o]). All of one type; `addend` may be
  // undefined, or `out` itself.
  void forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
               const at::Tensor& addend = {});
  // out [N, i] = y [N, o] weight [o, i].
  void input_gradient(const at::Tensor& out, const at::Tensor& y, const at::Tensor& weight);
  // out [o, i] fp32 = y^T [o, N] x [N, i], or added to what is there.
  void weight_gradient(const at::Tensor& out, const at::Tensor& y, const at::Tensor& x,
                       bool accumulate);

  // `rows`: for forward() (both factors) and as input_gradient()'s y; `columns`: as the weight of
  // input_gradient() and for weight_gradient(). What is not wanted is not made.
  Factor factor(const at::Tensor& values, FactorKind kind, bool rows, bool columns) const;
  // The same three products of factors.
  void forward(const at::Tensor& out, const Factor& x, const Factor& weight,
               const at::Tensor& addend = {});
  void input_gradient(const at::Tensor& out, const Factor& y, const Factor& weight);
  void weight_gradient(const at::Tensor& out, const Factor& y, const Factor& x, bool accumulate);

  // With SwiGLU (stage_ops.h) at the end: in one kernel where the device has it and it is the
  // faster way, else one after the other, to the same numbers.
  // gate_up [N, 2f] = x [N, d] weight^T; returns swiglu_forward(gate_up) [N, f].
  at::Tensor forward_swiglu(const at::Tensor& gate_up, const Factor& x, const Factor& weight);
  // SwiGLU's gradient, from y [N, d] weight [d, f], over gate_up [N, 2f]. Returns
  // swiglu_forward(gate_up) [N, f], or, if it is not wanted `again`, nothing.
  at::Tensor input_gradient_swiglu(const at::Tensor& gate_up, const Factor& y,
                                   const Factor& weight, bool again);

 private:
  struct Shape;
  struct Plan;
  class Library;
  void multiply(const Shape& shape, const void* first, const void* second, const void* addend,
                void* out, const void* first_scale = nullptr, const void* second_scale = nullptr);
  // out [N, m] (+ addend) = second [N, k] first [m, k]^T, of codes.
  void multiply_codes(const at::Tensor& out, const at::Tensor& first, const at::Tensor& first_scale,
                      const at::Tensor& second, const at::Tensor& second_scale,
                      const at::Tensor& addend, bool fast_sums);
  Plan make_plan(const Shape& shape, const void* first, const void* second, const void* addend,
                 void* out, const void* first_scale, const void* second_scale);

  at::Device device_;
  bool tune_ = false;
  bool fp8_ = false;
  std::unique_ptr<Library> library_;
};

}  // namespace tessera::model
