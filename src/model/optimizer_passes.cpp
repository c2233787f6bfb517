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

// Chunks (of 8192 values at most) a thread of the CPU should have at least: below that, waking it
// costs more than it does.
constexpr int64_t kChunksPerThread = 8;

at::TensorOptions bytes_on(const at::Device& device) {
  return at::TensorOptions().dtype(at::kByte).device(device);
}

at::Tensor chunk_table(const std::vector<kernels::OptimizerChunk>& chunks,
                       const at::Device& device) {
  const int64_t size = static_cast<int64_t>(chunks.size() * sizeof(kernels::OptimizerChunk));
  const at::Tensor host = at::empty({size}, bytes_on(at::kCPU));
  if (size > 0) std::memcpy(host.data_ptr<uint8_t>(), chunks.data(), static_cast<size_t>(size));
  return host.to(device);
}

int64_t chunk_count(const at::Tensor& table) {
  return table.numel() / static_cast<int64_t>(sizeof(kernels::OptimizerChunk));
}

const kernels::OptimizerChunk* chunks_of(const at::Tensor& table) {
  return reinterpret_cast<const kernels::OptimizerChunk*>(table.const_data_ptr<uint8_t>());
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

PieceTable::PieceTable(size_t pieces, const at::Device& device) {
  if (pieces < 2) return;
  const at::TensorOptions options = at::TensorOptions().dtype(at::kLong);
  const int64_t count = static_cast<int64_t>(pieces);
  host_ = at::empty({count}, options.pinned_memory(device.is_cuda()));
  table_ = device.is_cuda() ? at::empty({count}, options.device(device)) : host_;
}

kernels::GradientPlaces PieceTable::set(const GradientPieces& pieces) {
  TESSERA_CHECK(pieces.size() == (host_.defined() ? static_cast<size_t>(host_.numel()) : 1));
  kernels::GradientPlaces places;
  if (!host_.defined()) {
    places.flat = pieces.front().const_data_ptr<float>();
    return places;
  }
  static_assert(sizeof(const float*) == sizeof(int64_t));
  int64_t* addresses = host_.data_ptr<int64_t>();
  for (const at::Tensor& piece : pieces) {
    TESSERA_CHECK(piece.is_contiguous());
    const float* values = piece.const_data_ptr<float>();
    std::memcpy(addresses++, &values, sizeof(values));
  }
  if (table_.is_cuda()) table_.copy_(host_, /*non_blocking=*/true);
  places.pieces = reinterpret_cast<const float* const*>(table_.const_data_ptr<int64_t>());
  return places;
}

NormPass::NormPass(const std::vector<kernels::OptimizerSegment>& segments,
                   const std::vector<int64_t>& pieces, const at::Device& device)
    : chunks_(chunk_table(kernels::optimizer_chunks(segments, pieces), device)),
      partials_(at::empty({chunk_count(chunks_)},
                          at::TensorOptions().dtype(at::kDouble).device(device))),
      result_(at::empty({static_cast<int64_t>(sizeof(kernels::GradientNorm))}, bytes_on(device))) {
  if (!device.is_cuda()) return;
  host_result_ = at::empty(result_.sizes(), bytes_on(at::kCPU).pinned_memory(true));
  ready_.emplace(c10::DeviceType::CUDA);
}

Status NormPass::enqueue(const kernels::GradientPlaces& gradient, uint32_t microbatches,
                         double clip_norm, const Combine& combine) {
  kernels::NormParams params;
  params.gradient = gradient;
  params.chunks = chunks_of(chunks_);
  params.chunk_count = chunk_count(chunks_);
  params.microbatches = microbatches;
  params.clip_norm = clip_norm;
  params.partials = partials_.data_ptr<double>();
  params.result = reinterpret_cast<kernels::GradientNorm*>(result_.data_ptr<uint8_t>());
  const auto add_up = [&] {
    sums_ = combine ? combine(partials_) : partials_;
    params.partials = sums_.data_ptr<double>();
    params.chunk_count = sums_.numel();
  };
#ifdef TESSERA_WITH_CUDA
  if (result_.is_cuda()) {
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(result_.device().index());
    constexpr const char* kWhat = "the gradient's norm";
    TESSERA_RETURN_IF_ERROR(
        check_launch(kernels::norm_partials_cuda(params, stream.stream()), kWhat));
    add_up();
    TESSERA_RETURN_IF_ERROR(
        check_launch(kernels::finish_norm_cuda(params, stream.stream()), kWhat));
    host_result_.copy_(result_, /*non_blocking=*/true);
    ready_->record(stream.unwrap());
    return ok_status();
  }
#endif
  at::parallel_for(
      0, params.chunk_count, kChunksPerThread,
      [&](int64_t begin, int64_t end) { kernels::norm_partials_cpu(params, begin, end); });
  add_up();
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
                   const std::vector<int64_t>& pieces, const at::Device& device)
    : chunks_(chunk_table(kernels::optimizer_chunks(segments, pieces), device)) {}

Status AdamPass::enqueue(const StepTensors& tensors, const at::Tensor& first_moment,
                         const at::Tensor& second_moment, const kernels::AdamConstants& constants,
                         const kernels::GradientNorm* norm) const {
  if (chunks_.numel() == 0) return ok_status();
  kernels::AdamParams params;
  params.chunks = chunks_of(chunks_);
  params.chunk_count = chunk_count(chunks_);
  params.values = tensors.masters.data_ptr<float>();
  params.gradient = tensors.gradient;
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
  at::parallel_for(0, params.chunk_count, kChunksPerThread,
                   [&](int64_t begin, int64_t end) { kernels::adam_step_cpu(params, begin, end); });
  return ok_status();
}

}  // namespace tessera::model
