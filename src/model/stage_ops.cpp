#include "model/stage_ops.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sort.h>
#include <c10/util/Exception.h>

#include "tessera/kernels/anchor.h"
#include "tessera/kernels/cross_entropy.h"
#include "tessera/kernels/embedding.h"
#include "tessera/kernels/norm.h"
#include "tessera/kernels/rope.h"
#include "tessera/kernels/swiglu.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {
namespace {

using kernels::Real;

Real real_of(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
              "a stage kernel for ", tensor.scalar_type());
  return tensor.scalar_type() == at::kFloat ? Real::kFloat32 : Real::kBfloat16;
}

const void* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Runs a kernel of `tensor`'s device.
template <class Params>
void launch(const at::Tensor& tensor, const Params& params, void (*on_cpu)(const Params&),
            [[maybe_unused]] int (*on_cuda)(const Params&, void*),
            [[maybe_unused]] const char* name) {
#ifdef TESSERA_WITH_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(tensor.device().index());
    const int code = on_cuda(params, stream.stream());
    TORCH_CHECK(code == 0, name, " could not be launched: CUDA error ", code);
    return;
  }
#endif
  TORCH_CHECK(tensor.is_cpu(), name, " on ", tensor.device());
  on_cpu(params);
}

#ifdef TESSERA_WITH_CUDA
#define TESSERA_LAUNCH(tensor, params, kernel) \
  launch(tensor, params, &kernels::kernel##_cpu, &kernels::kernel##_cuda, #kernel)
#else
#define TESSERA_LAUNCH(tensor, params, kernel)                                              \
  launch<std::remove_cv_t<decltype(params)>>(tensor, params, &kernels::kernel##_cpu, nullptr, \
                                             #kernel)
#endif

at::TensorOptions wide_options(const at::Tensor& tensor) {
  return at::TensorOptions().dtype(at::kFloat).device(tensor.device());
}

float* partials_for(const at::Tensor& tensor, int64_t rows, int64_t width, at::Tensor* owner) {
  if (!tensor.is_cuda()) return nullptr;
  *owner = at::empty({rows, width}, wide_options(tensor));
  return owner->data_ptr<float>();
}

}  // namespace

void GradientTarget::take(const at::Tensor& gradient) const {
  if (!tensor.defined()) return;
  const at::Tensor shaped = gradient.view(tensor.sizes());
  if (accumulate) {
    tensor.add_(shaped);
  } else {
    tensor.copy_(shaped);
  }
}

NormResult norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  NormResult result{at::empty_like(x), at::empty({x.size(0)}, wide_options(x))};
  kernels::ResidualNormForwardParams params;
  params.type = real_of(x);
  params.rows = x.size(0);
  params.width = x.size(1);
  params.epsilon = static_cast<float>(epsilon);
  params.x = data_of(x);
  params.weight = data_of(weight);
  params.y = result.y.data_ptr();
  params.rstd = result.rstd.data_ptr<float>();
  TESSERA_LAUNCH(x, params, residual_norm_forward);
  return result;
}

void norm_backward(const at::Tensor& dy, const NormResult& kept, const at::Tensor& x,
                   const at::Tensor& weight, const at::Tensor& residual_gradient,
                   const GradientTarget& weight_gradient) {
  kernels::NormBackwardParams params;
  params.type = real_of(x);
  params.rows = x.size(0);
  params.width = x.size(1);
  params.dy = data_of(dy);
  params.sum = data_of(x);
  params.rstd = kept.rstd.const_data_ptr<float>();
  params.weight = data_of(weight);
  params.dresidual = data_of(residual_gradient);
  params.dx = dy.data_ptr();
  at::Tensor partials;
  if (weight_gradient.tensor.defined()) {
    params.weight_gradient = weight_gradient.tensor.data_ptr<float>();
    params.accumulate = weight_gradient.accumulate;
    params.partials = partials_for(x, kernels::norm_partial_rows(params.rows, params.width),
                                   params.width, &partials);
  }
  TESSERA_LAUNCH(x, params, norm_backward);
}

Heads make_heads(const core::ModelSpec& model, int64_t batch, const at::Device& device) {
  Heads heads;
  heads.batch = batch;
  heads.positions = model.context;
  heads.heads = model.heads;
  heads.key_heads = model.kv_heads;
  heads.head_dim = model.width / model.heads;
  // Angles in double: in fp32 a position of some thousands would already be off by 1e-4.
  const at::TensorOptions host = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor exponent =
      at::arange(0, heads.head_dim, 2, host).div_(static_cast<double>(heads.head_dim));
  const at::Tensor angle =
      at::outer(at::arange(heads.positions, host), at::pow(model.rope_theta, -exponent));
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(device);
  heads.cosine = angle.cos().to(options).contiguous();
  heads.sine = angle.sin().to(options).contiguous();
  return heads;
}

namespace {

kernels::RopeShape rope_shape(const Heads& heads, const at::Tensor& packed) {
  kernels::RopeShape shape;
  shape.type = real_of(packed);
  shape.rows = packed.size(0);
  shape.positions = heads.positions;
  shape.heads = heads.heads;
  shape.key_heads = heads.key_heads;
  shape.head_dim = heads.head_dim;
  return shape;
}

kernels::HeadTensor head_tensor(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 4 && tensor.stride(3) == 1, "heads must be contiguous inside");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(2), tensor.stride(1)};
}

}  // namespace

void rotate_in_place(const Heads& heads, const at::Tensor& packed) {
  kernels::RopeParams params;
  params.shape = rope_shape(heads, packed);
  params.cosine = heads.cosine.const_data_ptr<float>();
  params.sine = heads.sine.const_data_ptr<float>();
  params.packed = packed.data_ptr();
  TESSERA_LAUNCH(packed, params, rope);
}

void pack_gradient(const Heads& heads, const at::Tensor& dquery, const at::Tensor& dkey,
                   const at::Tensor& dvalue, const at::Tensor& packed) {
  kernels::RopePackParams params;
  params.shape = rope_shape(heads, packed);
  params.cosine = heads.cosine.const_data_ptr<float>();
  params.sine = heads.sine.const_data_ptr<float>();
  params.dquery = head_tensor(dquery);
  params.dkey = head_tensor(dkey);
  params.dvalue = head_tensor(dvalue);
  params.packed = packed.data_ptr();
  TESSERA_LAUNCH(packed, params, rope_pack_gradient);
}

at::Tensor swiglu_forward(const at::Tensor& gate_up) {
  const int64_t width = gate_up.size(1) / 2;
  at::Tensor h = at::empty({gate_up.size(0), width}, gate_up.options());
  kernels::SwigluForwardParams params;
  params.type = real_of(gate_up);
  params.rows = gate_up.size(0);
  params.width = width;
  params.gate_up = data_of(gate_up);
  params.h = h.data_ptr();
  TESSERA_LAUNCH(gate_up, params, swiglu_forward);
  return h;
}

void swiglu_backward(const at::Tensor& dh, const at::Tensor& gate_up, bool again) {
  kernels::SwigluBackwardParams params;
  params.type = real_of(gate_up);
  params.rows = gate_up.size(0);
  params.width = gate_up.size(1) / 2;
  params.dh = data_of(dh);
  params.gate_up = data_of(gate_up);
  params.dgate_up = gate_up.data_ptr();
  if (again) params.h = dh.data_ptr();
  TESSERA_LAUNCH(gate_up, params, swiglu_backward);
}

Fp8Codes fp8_codes(const at::Tensor& x, kernels::Fp8Format format, bool rows, bool columns) {
  const at::Tensor input = x.detach();
  TORCH_CHECK(input.is_contiguous(), "8-bit codes of a tensor with gaps");
  const at::TensorOptions codes = input.options().dtype(
      format == kernels::Fp8Format::kE4m3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2);
  const at::Tensor magnitude = at::empty({1}, wide_options(input));
  kernels::Fp8MagnitudeParams find;
  find.type = real_of(input);
  find.count = input.numel();
  find.x = data_of(input);
  find.magnitude = static_cast<uint32_t*>(magnitude.data_ptr());
  TESSERA_LAUNCH(input, find, fp8_magnitude);
  Fp8Codes result;
  result.inverse_scale = at::empty({1}, wide_options(input));
  if (rows) result.rows = at::empty({input.size(0), input.size(1)}, codes);
  if (columns) result.columns = at::empty({input.size(1), input.size(0)}, codes);
  kernels::Fp8QuantiseParams params;
  params.type = find.type;
  params.format = format;
  params.rows = input.size(0);
  params.width = input.size(1);
  params.x = find.x;
  params.magnitude = find.magnitude;
  if (rows) params.codes = static_cast<uint8_t*>(result.rows.data_ptr());
  if (columns) params.transposed = static_cast<uint8_t*>(result.columns.data_ptr());
  params.inverse_scale = result.inverse_scale.data_ptr<float>();
  TESSERA_LAUNCH(input, params, fp8_quantise);
  return result;
}

at::Tensor fp8_values(const Fp8Codes& codes, kernels::Fp8Format format) {
  TORCH_CHECK(codes.rows.is_cpu(), "values of codes on ", codes.rows.device());
  at::Tensor values = at::empty(codes.rows.sizes(), wide_options(codes.rows));
  const uint8_t* from = static_cast<const uint8_t*>(codes.rows.const_data_ptr());
  float* to = values.data_ptr<float>();
  const float scale = *codes.inverse_scale.const_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    to[i] = kernels::float_of_fp8(from[i], format) * scale;
  }
  return values;
}

void cross_entropy(const at::Tensor& logits, int64_t vocabulary, const at::Tensor& targets,
                   const at::Tensor& losses, double scale) {
  kernels::CrossEntropyParams params;
  params.type = real_of(logits);
  params.rows = logits.size(0);
  params.vocabulary = vocabulary;
  params.columns = logits.size(1);
  params.scale = static_cast<float>(scale);
  params.gradient = scale > 0;
  params.logits = logits.data_ptr();
  params.targets = targets.const_data_ptr<int32_t>();
  params.losses = losses.data_ptr<float>();
  TESSERA_LAUNCH(logits, params, cross_entropy);
}

at::Tensor embed(const at::Tensor& table, const at::Tensor& ids, bool normalise, double epsilon) {
  at::Tensor y = at::empty({ids.size(0), table.size(1)}, table.options().requires_grad(false));
  kernels::EmbeddingForwardParams params;
  params.type = real_of(table);
  params.rows = ids.size(0);
  params.width = table.size(1);
  params.vocabulary = table.size(0);
  params.normalise = normalise;
  params.epsilon = static_cast<float>(epsilon);
  params.table = data_of(table);
  params.ids = ids.const_data_ptr<int32_t>();
  params.y = y.data_ptr();
  TESSERA_LAUNCH(table, params, embedding_forward);
  return y;
}

void embed_backward(const at::Tensor& table, const at::Tensor& ids, const at::Tensor& dy,
                    bool normalise, double epsilon, const at::Tensor& gradient) {
  const auto [sorted, order] = at::sort(ids, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor narrow_order = order.to(at::kInt);
  kernels::EmbeddingBackwardParams params;
  params.type = real_of(dy);
  params.rows = ids.size(0);
  params.width = dy.size(1);
  params.vocabulary = gradient.size(0);
  params.normalise = normalise;
  params.epsilon = static_cast<float>(epsilon);
  params.table = data_of(table);
  params.sorted_ids = sorted.const_data_ptr<int32_t>();
  params.order = narrow_order.const_data_ptr<int32_t>();
  params.dy = data_of(dy);
  params.accumulate = true;
  params.table_gradient = gradient.data_ptr<float>();
  at::Tensor partials;
  params.partials =
      partials_for(dy, kernels::embedding_partial_rows(params.rows), params.width, &partials);
  TESSERA_LAUNCH(dy, params, embedding_backward);
}

AnchorResult anchor_forward(const at::Tensor& rows, const at::Tensor& ids,
                            const at::Tensor& channel, const at::Tensor& gain, int64_t rank,
                            double epsilon) {
  AnchorResult result{at::empty_like(channel), at::empty_like(channel),
                      at::empty({channel.size(0)}, wide_options(channel))};
  kernels::AnchorForwardParams params;
  params.type = real_of(channel);
  params.rows = channel.size(0);
  params.width = channel.size(1);
  params.rank = rank;
  params.epsilon = static_cast<float>(epsilon);
  params.anchor.data = data_of(rows);
  if (ids.defined()) {
    params.anchor.ids = ids.const_data_ptr<int32_t>();
    params.anchor.vocabulary = rows.size(0);
  }
  params.channel = data_of(channel);
  params.gain = data_of(gain);
  params.u = result.u.data_ptr();
  params.y = result.y.data_ptr();
  params.rstd = result.rstd.data_ptr<float>();
  TESSERA_LAUNCH(channel, params, anchor_forward);
  return result;
}

void anchor_backward(const at::Tensor& dy, const AnchorResult& kept, const at::Tensor& channel,
                     const at::Tensor& gain, int64_t rank, const GradientTarget& gain_gradient) {
  kernels::AnchorBackwardParams params;
  params.type = real_of(channel);
  params.rows = channel.size(0);
  params.width = channel.size(1);
  params.rank = rank;
  params.u = data_of(kept.u);
  params.channel = data_of(channel);
  params.gain = data_of(gain);
  params.rstd = kept.rstd.const_data_ptr<float>();
  params.dy = data_of(dy);
  params.du = dy.data_ptr();
  params.dchannel = channel.data_ptr();
  // The kernel always makes the gain's gradient: where nobody wants it, it goes nowhere.
  at::Tensor unwanted;
  if (!gain_gradient.tensor.defined()) unwanted = at::empty({params.width}, wide_options(channel));
  params.gain_gradient =
      (unwanted.defined() ? unwanted : gain_gradient.tensor).data_ptr<float>();
  params.accumulate = !unwanted.defined() && gain_gradient.accumulate;
  at::Tensor partials;
  params.partials = partials_for(
      channel, kernels::anchor_partial_rows(params.rows, params.width), params.width, &partials);
  TESSERA_LAUNCH(channel, params, anchor_backward);
}

}  // namespace tessera::model
