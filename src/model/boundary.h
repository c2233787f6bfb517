// The boundary between two stages, DESIGN section 3: what the sender makes of its output, what the
// receiver makes of what came over the wire. The iota kind changes the layers next to the boundary;
// those parts are in stage_function.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include "tessera/core/run_spec.h"

namespace tessera::model {

// Only what the run's kind has is defined. Shapes: stage_layout.h.
struct SenderWeights {
  at::Tensor encoder;                  // anchored
  at::Tensor encoder_in, encoder_out;  // residual
  at::Tensor down;                     // iota
};
struct ReceiverWeights {
  at::Tensor anchor, anchor_basis, decoder, gain;  // anchored; no basis: a full table
  at::Tensor decoder_in, decoder_out;              // residual
  at::Tensor up;                                   // iota
};

// x [B, T, d] -> [B, T, r]. Anchored: u = E RMSNorm(x), before its own RMSNorm, which the wire's
// encoder applies.
at::Tensor encode_boundary(const at::Tensor& x, const SenderWeights& weights,
                           const core::RunSpec& spec);

// z [B, T, r], tokens [B, T] int64 -> [B, T, d].
at::Tensor decode_boundary(const at::Tensor& z, const at::Tensor& tokens,
                           const ReceiverWeights& weights, const core::RunSpec& spec);

}  // namespace tessera::model
