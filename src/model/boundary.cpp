#include "model/boundary.h"

#include <ATen/ATen.h>

#include <cmath>

#include "model/blocks.h"

namespace tessera::model {
namespace {

using core::BoundaryKind;

// Two layers with SiLU between.
at::Tensor perceptron(const at::Tensor& x, const at::Tensor& first, const at::Tensor& second) {
  return at::linear(at::silu(at::linear(x, first)), second);
}

at::Tensor decode_anchored(const at::Tensor& z, const at::Tensor& tokens,
                           const ReceiverWeights& weights, double epsilon) {
  at::Tensor anchor = at::embedding(weights.anchor, tokens);
  if (weights.anchor_basis.defined()) anchor = at::matmul(anchor, weights.anchor_basis);
  const at::Tensor channel =
      at::linear(z, weights.decoder) / std::sqrt(static_cast<double>(z.size(-1)));
  return rms_norm(anchor + weights.gain * channel, {}, epsilon);
}

}  // namespace

at::Tensor encode_boundary(const at::Tensor& x, const SenderWeights& weights,
                           const core::RunSpec& spec) {
  const double epsilon = spec.model.norm_epsilon;
  switch (spec.boundary.kind) {
    case BoundaryKind::kResidual:
      return x.narrow(-1, 0, weights.encoder_out.size(0)) +
             perceptron(rms_norm(x, {}, epsilon), weights.encoder_in, weights.encoder_out);
    case BoundaryKind::kAnchored:
      return at::linear(rms_norm(x, {}, epsilon), weights.encoder);
    case BoundaryKind::kNone:
    case BoundaryKind::kIota:
      break;
  }
  return x;
}

at::Tensor decode_boundary(const at::Tensor& z, const at::Tensor& tokens,
                           const ReceiverWeights& weights, const core::RunSpec& spec) {
  switch (spec.boundary.kind) {
    case BoundaryKind::kResidual:
      return at::constant_pad_nd(z, {0, weights.decoder_out.size(0) - z.size(-1)}) +
             perceptron(z, weights.decoder_in, weights.decoder_out);
    case BoundaryKind::kAnchored:
      return decode_anchored(z, tokens, weights, spec.model.norm_epsilon);
    case BoundaryKind::kNone:
    case BoundaryKind::kIota:
      break;
  }
  return z;
}

}  // namespace tessera::model
