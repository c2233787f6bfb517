// Boundary tensors to payloads and back, with kernels/codec.h, on the tensor's device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "tessera/base/codec.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

struct WireEncoding {
  Codec codec = Codec::kFp32;
  bool normalise = false;
  float epsilon = 1e-5f;
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t stream = 0;
};

// Activations: to nearest; the anchored kind is normalised on the way (its tensor is u,
// StageOutput::wire).
WireEncoding forward_encoding(const core::RunSpec& spec);

// Gradients: integer codecs round stochastically, by a generator that a validator can repeat and
// that is the same for every attempt.
WireEncoding gradient_encoding(const core::RunSpec& spec, MicrobatchId microbatch,
                               uint32_t boundary);

// A payload on its way from the device.
class PendingPayload {
 public:
  // Waits until it is there; not for work that was begun after it.
  StatusOr<ports::BoundaryPayload> finish();

 private:
  friend PendingPayload begin_encode(const at::Tensor&, const WireEncoding&);
  ports::BoundaryPayload payload_;  // on a CPU: complete
  at::Tensor encoded_, host_;       // on a GPU: payload, then its exponent
  int64_t bytes_ = 0;
  std::shared_ptr<void> event_;
};
// `values`: [..., width] fp32, contiguous.
PendingPayload begin_encode(const at::Tensor& values, const WireEncoding& encoding);
// Both in one.
StatusOr<ports::BoundaryPayload> encode_rows(const at::Tensor& values,
                                             const WireEncoding& encoding);

// [rows, width] fp32 on `device`. INVALID_ARGUMENT: the payload has the wrong size or an impossible
// exponent. DATA_LOSS: a value is not finite. `name` for the messages: "activation", "boundary
// gradient".
StatusOr<at::Tensor> decode_rows(const ports::BoundaryPayload& payload, Codec codec, int64_t rows,
                                 int64_t width, const at::Device& device, const char* name);

}  // namespace tessera::model
