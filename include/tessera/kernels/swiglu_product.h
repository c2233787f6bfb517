// Matrix products that end in SwiGLU, of bf16, on GPUs of compute capability 9.0 alone: the product
// before SwiGLU with it, and the gradient that comes back into SwiGLU with its gradient. Neither
// reads again what a product just wrote, and dh is never written.
// The reference is the product, rounded to bf16, and swiglu.h: h and the gradients are to the bit
// what swiglu.h's CUDA kernels make of the same gate_up and dh. Sums are fp32, in the order of the
// tensor cores; the same bits in every run. Tensors are contiguous.
#pragma once

#include <cstdint>

namespace tessera::kernels {

// gate_up = x weight^T, h = silu(gate) * up
struct SwigluProductForwardParams {
  int64_t rows = 0;
  int64_t width = 0;             // a multiple of 128
  int64_t depth = 0;             // a multiple of 64, 384 or more
  const void* x = nullptr;       // [rows, depth]
  const void* weight = nullptr;  // [2 * width, depth]: gate first
  void* gate_up = nullptr;       // [rows, 2 * width]
  void* h = nullptr;             // [rows, width]
};

// dh = dy weight; dgate | dup over gate | up; h, where wanted, is made again.
struct SwigluProductBackwardParams {
  int64_t rows = 0;
  int64_t width = 0;             // a multiple of 256
  int64_t depth = 0;             // a multiple of 64, 512 or more
  const void* dy = nullptr;      // [rows, depth]
  const void* weight = nullptr;  // [depth, width]
  void* gate_up = nullptr;       // [rows, 2 * width]
  void* h = nullptr;             // [rows, width], or null: not wanted
};

// Whether the current device has the kernel and it takes these sizes and addresses (multiples of 16
// bytes). Where not, a product and swiglu.h do the same.
bool swiglu_product_forward_fits(const SwigluProductForwardParams& params);
bool swiglu_product_backward_fits(const SwigluProductBackwardParams& params);

// Whether it fits and its tiles keep the device's multiprocessors busy. Where not, the product
// splits better into others' tiles, and one after the other is as fast or faster.
bool swiglu_product_forward_pays(const SwigluProductForwardParams& params);
bool swiglu_product_backward_pays(const SwigluProductBackwardParams& params);

// `stream_handle` is a cudaStream_t; returns a cudaError_t: cudaErrorInvalidValue for what does not
// fit.
int swiglu_product_forward_cuda(const SwigluProductForwardParams& params, void* stream_handle);
int swiglu_product_backward_cuda(const SwigluProductBackwardParams& params, void* stream_handle);

}  // namespace tessera::kernels
