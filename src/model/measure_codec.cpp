#include "tessera/model/measure_codec.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include "model/failure.h"
#include "model/timing.h"
#include "tessera/kernels/codec.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {
namespace {

void encode(const kernels::EncodeParams& params, [[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    const int code = kernels::encode_cuda(
        params, c10::cuda::getCurrentCUDAStream(device.index()).stream());
    TORCH_CHECK(code == 0, "the encoder could not be launched: CUDA error ", code);
    return;
  }
#endif
  kernels::encode_cpu(params);
}

void decode(const kernels::DecodeParams& params, [[maybe_unused]] const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    const int code = kernels::decode_cuda(
        params, c10::cuda::getCurrentCUDAStream(device.index()).stream());
    TORCH_CHECK(code == 0, "the decoder could not be launched: CUDA error ", code);
    return;
  }
#endif
  kernels::decode_cpu(params);
}

CodecMeasurement run_measurement(const CodecCase& codec_case, const at::Device& device,
                                 const MeasureOptions& options) {
  const int64_t rows = static_cast<int64_t>(codec_case.rows);
  const int64_t width = static_cast<int64_t>(codec_case.width);
  CodecMeasurement result;
  result.payload_bytes = payload_bytes(codec_case.codec, codec_case.rows, codec_case.width);
  const at::TensorOptions on_device = at::TensorOptions().device(device);
  const at::Tensor values = at::randn({rows, width}, on_device.dtype(at::kFloat));
  const at::Tensor decoded = at::empty_like(values);
  const at::Tensor payload =
      at::empty({static_cast<int64_t>(result.payload_bytes)}, on_device.dtype(at::kByte));
  const at::Tensor exponent = at::zeros({1}, on_device.dtype(at::kInt));

  kernels::EncodeParams to_nearest;
  to_nearest.input = values.const_data_ptr<float>();
  to_nearest.rows = rows;
  to_nearest.width = width;
  to_nearest.codec = codec_case.codec;
  to_nearest.normalise = true;
  to_nearest.payload = payload.data_ptr<uint8_t>();
  to_nearest.exponent = exponent.data_ptr<int32_t>();
  kernels::EncodeParams at_random = to_nearest;
  at_random.normalise = false;
  at_random.stochastic = true;
  kernels::DecodeParams back;
  back.payload = payload.const_data_ptr<uint8_t>();
  back.rows = rows;
  back.width = width;
  back.codec = codec_case.codec;
  back.output = decoded.data_ptr<float>();

  const auto time = [&](const std::function<void()>& work) {
    for (uint32_t i = 0; i < options.warmup_steps; ++i) work();
    return best_seconds(device, options.blocks, options.steps, work);
  };
  result.encode_seconds = time([&] { encode(to_nearest, device); });
  result.encode_random_seconds = time([&] { encode(at_random, device); });
  result.decode_seconds = time([&] { decode(back, device); });
  const int64_t half = (static_cast<int64_t>(values.nbytes()) + payload.numel()) / 2;
  const at::Tensor from = at::zeros({half}, on_device.dtype(at::kByte)), to = at::empty_like(from);
  result.copy_seconds = time([&] { to.copy_(from); });
  return result;
}

}  // namespace

StatusOr<CodecMeasurement> measure_codec(const CodecCase& codec_case, const std::string& device,
                                         const MeasureOptions& options) {
  return guarded("measuring a codec", [&]() -> StatusOr<CodecMeasurement> {
    const at::Device torch_device(device);
    const c10::DeviceGuard on_device(torch_device);
    return run_measurement(codec_case, torch_device, options);
  });
}

}  // namespace tessera::model
