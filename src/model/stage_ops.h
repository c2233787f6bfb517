// The kernels of kernels/ as functions of tensors, on the tensors' device: fp32 on a CPU, bf16 (or
// fp32) on CUDA. Rows are [N, width]. They throw what torch throws.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "tessera/core/run_spec.h"
#include "tessera/kernels/fp8.h"

namespace tessera::model {

// Where a parameter's gradient goes: an fp32 tensor that is overwritten or added to. Undefined
// `tensor`: not wanted.
struct GradientTarget {
  at::Tensor tensor;
  bool accumulate = false;

  // Copies or adds `gradient`, of any type and of as many numbers; nothing if undefined.
  void take(const at::Tensor& gradient) const;
};

struct NormResult {
  at::Tensor y;
  at::Tensor rstd;  // [N] fp32
};
NormResult norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon);
// Writes `residual_gradient` (or zeros, if undefined) + the norm's input gradient over `dy`.
void norm_backward(const at::Tensor& dy, const NormResult& kept, const at::Tensor& x,
                   const at::Tensor& weight, const at::Tensor& residual_gradient,
                   const GradientTarget& weight_gradient);

// The heads of the model and the angles of every position.
struct Heads {
  int64_t batch = 0, positions = 0, heads = 0, key_heads = 0, head_dim = 0;
  at::Tensor cosine, sine;  // [positions, head_dim / 2] fp32
};
Heads make_heads(const core::ModelSpec& model, int64_t batch, const at::Device& device);
// Queries and keys of packed [N, (H + 2G) D], in place.
void rotate_in_place(const Heads& heads, const at::Tensor& packed);
// Gradients [B, heads, T, D] in any layout to the gradient of `packed`, which is overwritten.
void pack_gradient(const Heads& heads, const at::Tensor& dquery, const at::Tensor& dkey,
                   const at::Tensor& dvalue, const at::Tensor& packed);

at::Tensor swiglu_forward(const at::Tensor& gate_up);
// dgate_up over `gate_up`, and, if it is wanted `again`, swiglu_forward's output over `dh`.
void swiglu_backward(const at::Tensor& dh, const at::Tensor& gate_up, bool again);

// A tensor in 8-bit floats (kernels/fp8.h), of ATen's types for them.
struct Fp8Codes {
  at::Tensor rows;           // [N, width], if wanted
  at::Tensor columns;        // [width, N], if wanted
  at::Tensor inverse_scale;  // [1] fp32
};
Fp8Codes fp8_codes(const at::Tensor& x, kernels::Fp8Format format, bool rows, bool columns);
// What the rows stand for, fp32. CPU only.
at::Tensor fp8_values(const Fp8Codes& codes, kernels::Fp8Format format);

// Losses [N] fp32 of logits [N, >= vocabulary]; with `scale` > 0 the logits become their gradient
// times it.
void cross_entropy(const at::Tensor& logits, int64_t vocabulary, const at::Tensor& targets,
                   const at::Tensor& losses, double scale);

// ids [N] int32.
at::Tensor embed(const at::Tensor& table, const at::Tensor& ids, bool normalise, double epsilon);
// Adds to gradient [V, width].
void embed_backward(const at::Tensor& table, const at::Tensor& ids, const at::Tensor& dy,
                    bool normalise, double epsilon, const at::Tensor& gradient);

// The anchored boundary's receiving side (kernels/anchor.h): u, then its RMSNorm. `rows`: a table
// [V, d] read by ids, or, with ids undefined, [N, d].
struct AnchorResult {
  at::Tensor y, u, rstd;
};
AnchorResult anchor_forward(const at::Tensor& rows, const at::Tensor& ids,
                            const at::Tensor& channel, const at::Tensor& gain, int64_t rank,
                            double epsilon);
// du over `dy`, dchannel over `channel`.
void anchor_backward(const at::Tensor& dy, const AnchorResult& kept, const at::Tensor& channel,
                     const at::Tensor& gain, int64_t rank, const GradientTarget& gain_gradient);

}  // namespace tessera::model
