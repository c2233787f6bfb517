#include "model/optimizer_passes.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "model/failure.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {
namespace {

// Values a thread of the CPU should have at least: below that, waking it costs more than it does.
constexpr int64_t kValuesPerThread = 65536;

at::TensorOptions bytes_on(const at::Device& device) {
  return at::TensorOptions().dtype(at::kByte).device(device);
}

#ifdef TESSERA_WITH_CUDA
void* stream_of(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}
#endif

}  // namespace

WeightPointers weight_pointers(const at::Tensor& compute_weights) {
  WeightPointers pointers;
  if (compute_weights.scalar_type() == at::kBFloat16) {
    pointers.as_bfloat16 = static_cast<uint16_t*>(compute_weights.data_ptr());
  } else {
    pointers.as_float = compute_weights.data_ptr<float>();
  }
  return pointers;
}

NormPass::NormPass(int64_t count, const at::Device& device)
    : partials_(at::empty({kernels::norm_partial_count(count)},
                          at::TensorOptions().dtype(at::kDouble).device(device))),
      result_(at::empty({static_cast<int64_t>(sizeof(kernels::GradientNorm))}, bytes_on(device))) {
  if (!device.is_cuda()) return;
  host_result_ = at::empty(result_.sizes(), bytes_on(at::kCPU).pinned_memory(true));
  ready_.emplace(c10::DeviceType::CUDA);
}

Status NormPass::enqueue(const at::Tensor& gradient, uint32_t microbatches, double clip_norm) {
  kernels::NormParams params;
  params.gradient = gradient.const_data_ptr<float>();
  params.count = gradient.numel();
  params.microbatches = microbatches;
  params.clip_norm = clip_norm;
  params.partials = partials_.data_ptr<double>();
  params.result = reinterpret_cast<kernels::GradientNorm*>(result_.data_ptr<uint8_t>());
  TESSERA_CHECK(partials_.numel() == kernels::norm_partial_count(params.count));
#ifdef TESSERA_WITH_CUDA
  if (gradient.is_cuda()) {
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(gradient.device().index());
    TESSERA_RETURN_IF_ERROR(
        check_launch(kernels::gradient_norm_cuda(params, stream.stream()), "the gradient's norm"));
    host_result_.copy_(result_, /*non_blocking=*/true);
    ready_->record(stream.unwrap());
    return ok_status();
  }
#endif
  at::parallel_for(
      0, partials_.numel(), kValuesPerThread / kernels::kNormTile,
      [&](int64_t begin, int64_t end) { kernels::norm_partials_cpu(params, begin, end); });
  kernels::finish_norm_cpu(params);
  return ok_status();
}

const kernels::GradientNorm* NormPass::result() const {
  return reinterpret_cast<const kernels::GradientNorm*>(result_.const_data_ptr<uint8_t>());
}

kernels::GradientNorm NormPass::wait() {
  if (ready_) ready_->synchronize();
  const at::Tensor& source = ready_ ? host_result_ : result_;
  kernels::GradientNorm norm;
  std::memcpy(&norm, source.const_data_ptr<uint8_t>(), sizeof(norm));
  return norm;
}

AdamPass::AdamPass(const std::vector<kernels::OptimizerSegment>& segments,
                   const at::Device& device) {
  const std::vector<kernels::OptimizerChunk> chunks = kernels::optimizer_chunks(segments);
  chunk_count_ = static_cast<int64_t>(chunks.size());
  const int64_t size = chunk_count_ * static_cast<int64_t>(sizeof(kernels::OptimizerChunk));
  const at::Tensor host = at::empty({size}, bytes_on(at::kCPU));
  if (size > 0) std::memcpy(host.data_ptr<uint8_t>(), chunks.data(), static_cast<size_t>(size));
  chunks_ = host.to(device);
}

Status AdamPass::enqueue(const StepTensors& tensors, const at::Tensor& first_moment,
                         const at::Tensor& second_moment, const kernels::AdamConstants& constants,
                         const kernels::GradientNorm* norm) const {
  if (chunk_count_ == 0) return ok_status();
  kernels::AdamParams params;
  params.chunks = reinterpret_cast<const kernels::OptimizerChunk*>(chunks_.const_data_ptr());
  params.chunk_count = chunk_count_;
  params.values = tensors.masters.data_ptr<float>();
  params.gradient = tensors.gradient.const_data_ptr<float>();
  params.first_moment = first_moment.data_ptr<float>();
  params.second_moment = second_moment.data_ptr<float>();
  const WeightPointers weights = weight_pointers(tensors.compute_weights);
  params.weights_float = weights.as_float;
  params.weights_bfloat16 = weights.as_bfloat16;
  params.constants = constants;
  params.norm = norm;
#ifdef TESSERA_WITH_CUDA
  if (tensors.masters.is_cuda()) {
    return check_launch(kernels::adam_step_cuda(params, stream_of(tensors.masters)),
                        "the optimizer's step");
  }
#endif
  const int64_t values_per_chunk =
      std::max<int64_t>(1, tensors.masters.numel() / std::max<int64_t>(1, chunk_count_));
  at::parallel_for(0, chunk_count_, std::max<int64_t>(1, kValuesPerThread / values_per_chunk),
                   [&](int64_t begin, int64_t end) { kernels::adam_step_cpu(params, begin, end); });
  return ok_status();
}

}  // namespace tessera::model
