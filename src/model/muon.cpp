#include "model/muon.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "model/failure.h"

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {
namespace {

// Jordan's coefficients: the steepest slope at zero, at the price of singular values that end near
// 1 and not at it.
constexpr double kLinear = 3.4445;
constexpr double kCubic = -4.7750;
constexpr double kQuintic = 2.0315;
constexpr int kIterations = 5;
constexpr double kNormEpsilon = 1e-7;

// Values of one stack at most (one matrix may have more): bounds the memory of a step, which is
// about five stacks.
constexpr int64_t kMostStackedValues = int64_t{1} << 26;
// Blocks that a thread of the CPU should have at least.
constexpr int64_t kBlocksPerThread = 8;

}  // namespace

Status run_muon(MuonHalf half, const kernels::MuonParams& params, const at::Device& device) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) {
    void* stream = c10::cuda::getCurrentCUDAStream(device.index()).stream();
    return half == MuonHalf::kMomentum
               ? check_launch(kernels::muon_momentum_cuda(params, stream), "Muon's momentum")
               : check_launch(kernels::muon_apply_cuda(params, stream), "Muon's update");
  }
#endif
  TESSERA_CHECK(device.is_cpu());
  const auto function =
      half == MuonHalf::kMomentum ? kernels::muon_momentum_cpu : kernels::muon_apply_cpu;
  at::parallel_for(0, kernels::muon_block_count(params), kBlocksPerThread,
                   [&](int64_t begin, int64_t end) { function(params, begin, end); });
  return ok_status();
}

void set_muon_stack(const at::Tensor& stack, kernels::MuonParams* params) {
  if (stack.scalar_type() == at::kBFloat16) {
    params->stack_bfloat16 = static_cast<uint16_t*>(stack.data_ptr());
  } else {
    params->stack_float = stack.data_ptr<float>();
  }
}

at::Tensor newton_schulz(at::Tensor stack) {
  stack.div_(at::linalg_vector_norm(stack, 2, at::IntArrayRef{1, 2}, /*keepdim=*/true, at::kFloat)
                 .clamp_min_(kNormEpsilon));
  const bool tall = stack.size(1) > stack.size(2);
  for (int i = 0; i < kIterations; ++i) {
    const at::Tensor transposed = stack.transpose(1, 2);
    const at::Tensor gram = tall ? at::bmm(transposed, stack) : at::bmm(stack, transposed);
    const at::Tensor polynomial = at::baddbmm(gram, gram, gram, kCubic, kQuintic);
    stack = tall ? at::baddbmm(stack, stack, polynomial, kLinear)
                 : at::baddbmm(stack, polynomial, stack, kLinear);
  }
  return stack;
}

MuonPass::MuonPass(const std::vector<ports::TensorLayout>& matrices,
                   const std::vector<int64_t>& pieces, const at::Device& device) {
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> by_shape;
  for (const ports::TensorLayout& matrix : matrices) {
    TESSERA_CHECK(matrix.shape.size() == 2);
    by_shape[{matrix.shape[0], matrix.shape[1]}].push_back(static_cast<int64_t>(matrix.offset));
  }
  for (const auto& [shape, offsets] : by_shape) {
    const int64_t most = std::max<int64_t>(1, kMostStackedValues / (shape.first * shape.second));
    for (int64_t first = 0; first < static_cast<int64_t>(offsets.size()); first += most) {
      const int64_t count = std::min(most, static_cast<int64_t>(offsets.size()) - first);
      const at::Tensor table = at::empty({count}, at::TensorOptions().dtype(at::kLong));
      const at::Tensor piece_of = at::empty({count}, at::TensorOptions().dtype(at::kInt));
      const at::Tensor within = table.clone();
      for (int64_t i = 0; i < count; ++i) {
        const int64_t offset = offsets[static_cast<size_t>(first + i)];
        const auto next = std::upper_bound(pieces.begin(), pieces.end(), offset);
        table.data_ptr<int64_t>()[i] = offset;
        piece_of.data_ptr<int32_t>()[i] = static_cast<int32_t>(next - pieces.begin()) - 1;
        within.data_ptr<int64_t>()[i] = pieces.empty() ? offset : offset - *(next - 1);
      }
      stacks_.push_back({shape.first, shape.second, table.to(device), piece_of.to(device),
                         within.to(device)});
    }
  }
}

Status MuonPass::enqueue(const StepTensors& tensors, const at::Tensor& momentum,
                         const MuonConstants& constants, const kernels::GradientNorm* norm) const {
  const at::Device device = tensors.masters.device();
  kernels::MuonParams params;
  params.gradient = tensors.gradient;
  params.momentum = momentum.data_ptr<float>();
  params.values = tensors.masters.data_ptr<float>();
  params.norm = norm;
  params.momentum_factor = static_cast<float>(constants.momentum);
  params.momentum_rate = static_cast<float>(1 - constants.momentum);
  params.keep = static_cast<float>(1 - constants.learning_rate * constants.weight_decay);
  const WeightPointers weights = weight_pointers(tensors.compute_weights);
  params.weights_float = weights.as_float;
  params.weights_bfloat16 = weights.as_bfloat16;
  for (const Stack& which : stacks_) {
    const int64_t count = which.offsets.numel();
    at::Tensor stack =
        at::empty({count, which.rows, which.columns},
                  tensors.masters.options().dtype(device.is_cuda() ? at::kBFloat16 : at::kFloat));
    kernels::MuonParams own = params;
    own.offsets = which.offsets.const_data_ptr<int64_t>();
    own.gradient_pieces = which.pieces.const_data_ptr<int32_t>();
    own.gradient_offsets = which.gradient_offsets.const_data_ptr<int64_t>();
    own.matrices = count;
    own.matrix_values = which.rows * which.columns;
    const double shape_factor =
        std::max(1.0, static_cast<double>(which.rows) / static_cast<double>(which.columns));
    own.step = static_cast<float>(constants.learning_rate * std::sqrt(shape_factor));
    kernels::MuonParams before = own;
    set_muon_stack(stack, &before);
    TESSERA_RETURN_IF_ERROR(run_muon(MuonHalf::kMomentum, before, device));
    stack = newton_schulz(std::move(stack));
    set_muon_stack(stack, &own);
    TESSERA_RETURN_IF_ERROR(run_muon(MuonHalf::kApply, own, device));
  }
  return ok_status();
}

}  // namespace tessera::model
