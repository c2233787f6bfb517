#include "model/wire.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/failure.h"
#include "tessera/base/prng.h"
#include "tessera/kernels/codec.h"

#ifdef TESSERA_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {
namespace {

using ports::BoundaryPayload;

// What an encoder can write (kernels/codec.h), with room above.
constexpr int32_t kLeastExponent = -126;
constexpr int32_t kGreatestExponent = 127;

// Keeps the generator of gradients apart from every other use of the run's seed.
constexpr uint64_t kGradientDomain = 0x6772616469656e74ull;  // "gradient"
// Boundary indices fit: a run has at most 64 stages.
constexpr uint64_t kStreamsPerMicrobatch = 64;

kernels::EncodeParams encode_params(const at::Tensor& values, const WireEncoding& encoding) {
  kernels::EncodeParams params;
  params.input = values.const_data_ptr<float>();
  params.width = values.size(-1);
  params.rows = values.numel() / params.width;
  params.codec = encoding.codec;
  params.normalise = encoding.normalise;
  params.epsilon = encoding.epsilon;
  params.stochastic = encoding.stochastic;
  params.seed = encoding.seed;
  params.stream = encoding.stream;
  return params;
}

#ifdef TESSERA_WITH_CUDA

int64_t exponent_offset(int64_t payload_size) { return (payload_size + 3) / 4 * 4; }

StatusOr<at::Tensor> decode_on_gpu(kernels::DecodeParams params, const BoundaryPayload& payload,
                                   const at::Device& device) {
  const int64_t size = static_cast<int64_t>(payload.bytes.size());
  const at::TensorOptions bytes = at::TensorOptions().dtype(at::kByte);
  const at::Tensor host = at::empty({size}, bytes.pinned_memory(true));
  std::memcpy(host.data_ptr<uint8_t>(), payload.bytes.data(), payload.bytes.size());
  const at::Tensor encoded = host.to(device, /*non_blocking=*/true);
  at::Tensor values =
      at::empty({params.rows, params.width}, at::TensorOptions().dtype(at::kFloat).device(device));
  params.payload = encoded.data_ptr<uint8_t>();
  params.output = values.data_ptr<float>();
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device.index());
  TESSERA_RETURN_IF_ERROR(check_launch(kernels::decode_cuda(params, stream.stream()), "decode"));
  return values;
}

#endif

StatusOr<at::Tensor> decode_values(kernels::DecodeParams params, const BoundaryPayload& payload,
                                   const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) return decode_on_gpu(params, payload, device);
#endif
  TESSERA_CHECK(device.is_cpu());
  at::Tensor values = at::empty({params.rows, params.width}, at::TensorOptions().dtype(at::kFloat));
  params.payload = reinterpret_cast<const uint8_t*>(payload.bytes.data());
  params.output = values.data_ptr<float>();
  kernels::decode_cpu(params);
  return values;
}

bool all_finite(const at::Tensor& values) {
  if (!values.is_cpu()) return at::isfinite(values).all().item<bool>();
  const float* begin = values.const_data_ptr<float>();
  return std::all_of(begin, begin + values.numel(),
                     [](float value) { return std::isfinite(value); });
}

}  // namespace

WireEncoding forward_encoding(const core::RunSpec& spec) {
  WireEncoding encoding;
  encoding.codec = spec.boundary.codec;
  encoding.normalise = spec.boundary.kind == core::BoundaryKind::kAnchored;
  encoding.epsilon = static_cast<float>(spec.model.norm_epsilon);
  return encoding;
}

WireEncoding gradient_encoding(const core::RunSpec& spec, MicrobatchId microbatch,
                               uint32_t boundary) {
  WireEncoding encoding;
  encoding.codec = spec.boundary.codec;
  encoding.stochastic = has_scales(spec.boundary.codec);
  encoding.seed = mix64(spec.training.seed ^ kGradientDomain);
  encoding.stream = microbatch * kStreamsPerMicrobatch + boundary;
  return encoding;
}

PendingPayload begin_encode(const at::Tensor& values, const WireEncoding& encoding) {
  TESSERA_CHECK(values.is_contiguous() && values.scalar_type() == at::kFloat && values.numel() > 0);
  kernels::EncodeParams params = encode_params(values, encoding);
  PendingPayload pending;
  pending.bytes_ = static_cast<int64_t>(payload_bytes(
      params.codec, static_cast<size_t>(params.rows), static_cast<size_t>(params.width)));
#ifdef TESSERA_WITH_CUDA
  if (values.is_cuda()) {
    // The exponent behind the payload, aligned: one copy fetches both.
    const int64_t exponent_at = exponent_offset(pending.bytes_);
    const at::TensorOptions bytes = at::TensorOptions().dtype(at::kByte);
    pending.encoded_ = at::empty({exponent_at + 4}, bytes.device(values.device()));
    pending.host_ = at::empty({exponent_at + 4}, bytes.pinned_memory(true));
    params.payload = pending.encoded_.data_ptr<uint8_t>();
    params.exponent =
        reinterpret_cast<int32_t*>(pending.encoded_.data_ptr<uint8_t>() + exponent_at);
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(values.device().index());
    const int code = kernels::encode_cuda(params, stream.stream());
    TORCH_CHECK(code == 0, "the boundary's encoder could not be launched: CUDA error ", code);
    pending.host_.copy_(pending.encoded_, /*non_blocking=*/true);
    auto event = std::make_shared<at::cuda::CUDAEvent>();
    event->record(stream);
    pending.event_ = event;
    return pending;
  }
#endif
  TESSERA_CHECK(values.is_cpu());
  pending.payload_.bytes.resize(static_cast<size_t>(pending.bytes_));
  params.payload = reinterpret_cast<uint8_t*>(pending.payload_.bytes.data());
  params.exponent = &pending.payload_.exponent;
  kernels::encode_cpu(params);
  return pending;
}

StatusOr<BoundaryPayload> PendingPayload::finish() {
#ifdef TESSERA_WITH_CUDA
  if (event_) {
    static_cast<at::cuda::CUDAEvent*>(event_.get())->synchronize();
    const uint8_t* bytes = host_.const_data_ptr<uint8_t>();
    payload_.bytes.assign(reinterpret_cast<const char*>(bytes), static_cast<size_t>(bytes_));
    std::memcpy(&payload_.exponent, bytes + exponent_offset(bytes_), sizeof(int32_t));
  }
#endif
  return std::move(payload_);
}

StatusOr<BoundaryPayload> encode_rows(const at::Tensor& values, const WireEncoding& encoding) {
  return begin_encode(values, encoding).finish();
}

StatusOr<at::Tensor> decode_rows(const BoundaryPayload& payload, Codec codec, int64_t rows,
                                 int64_t width, const at::Device& device, const char* name) {
  const size_t expected =
      payload_bytes(codec, static_cast<size_t>(rows), static_cast<size_t>(width));
  if (payload.bytes.size() != expected) {
    return invalid_argument(
        "the {} has {} bytes, but {} rows of {} numbers in {} take {}; sender and receiver must "
        "run with the same "
        "specification",
        name, payload.bytes.size(), rows, width, core::name_of(codec), expected);
  }
  if (has_scales(codec) &&
      (payload.exponent < kLeastExponent || payload.exponent > kGreatestExponent)) {
    return invalid_argument(
        "the {} has exponent {}, which no encoder writes ({} to {}); its sender is broken", name,
        payload.exponent, kLeastExponent, kGreatestExponent);
  }
  kernels::DecodeParams params;
  params.exponent = payload.exponent;
  params.rows = rows;
  params.width = width;
  params.codec = codec;
  TESSERA_ASSIGN_OR_RETURN(at::Tensor values, decode_values(params, payload, device));
  if (!all_finite(values)) {
    return data_loss(
        "non-finite {}: a number in the payload is infinite or not a number; its sender has "
        "diverged",
        name);
  }
  return values;
}

}  // namespace tessera::model
