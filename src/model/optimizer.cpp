#include "model/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace tessera::model {
namespace {

// As torch.nn.utils.clip_grad_norm_ has it.
constexpr double kClipEpsilon = 1e-6;

}  // namespace

FlatAdamW::FlatAdamW(const core::TrainingSpec& training,
                     const std::vector<ports::TensorLayout>& layout, const at::Device& device)
    : training_(training) {
  int64_t count = 0;
  for (const ports::TensorLayout& tensor : layout) {
    const bool decays = tensor.shape.size() > 1;
    if (slices_.empty() || slices_.back().decays != decays) slices_.push_back({count, 0, decays});
    slices_.back().count += static_cast<int64_t>(tensor.count);
    count += static_cast<int64_t>(tensor.count);
  }
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(device);
  first_moment_ = at::zeros({count}, options);
  second_moment_ = at::zeros({count}, options);
}

StatusOr<double> FlatAdamW::step(const at::Tensor& masters, const at::Tensor& accumulator,
                                 uint32_t microbatches, double learning_rate) {
  // The norm of the slices' norms: sums of squares stay short, and their sum is in double.
  std::vector<at::Tensor> norms;
  for (const Slice& slice : slices_) {
    norms.push_back(at::linalg_vector_norm(accumulator.narrow(0, slice.offset, slice.count)));
  }
  const double sum_norm = at::linalg_vector_norm(at::stack(norms).to(at::kDouble)).item<double>();
  const double norm = sum_norm / microbatches;
  if (!std::isfinite(norm)) {
    return data_loss(
        "the gradient of {} microbatches is not finite; it was dropped and the weights are as "
        "before. If this "
        "repeats, lower training.learning_rate or set training.clip_norm",
        microbatches);
  }
  double divisor = microbatches;
  if (training_.clip_norm > 0) {
    divisor /= std::min(1.0, training_.clip_norm / (norm + kClipEpsilon));
  }
  ++steps_;
  const at::Tensor gradient_divisor = at::full({}, divisor, masters.options());
  update(true, masters, accumulator, gradient_divisor, learning_rate);
  update(false, masters, accumulator, gradient_divisor, learning_rate);
  return norm;
}

void FlatAdamW::update(bool decays, const at::Tensor& masters, const at::Tensor& accumulator,
                       const at::Tensor& gradient_divisor, double learning_rate) {
  std::vector<at::Tensor> values, gradients, first, second, steps;
  const at::Tensor step = at::full({}, static_cast<double>(steps_), masters.options());
  for (const Slice& slice : slices_) {
    if (slice.decays != decays) continue;
    values.push_back(masters.narrow(0, slice.offset, slice.count));
    gradients.push_back(accumulator.narrow(0, slice.offset, slice.count));
    first.push_back(first_moment_.narrow(0, slice.offset, slice.count));
    second.push_back(second_moment_.narrow(0, slice.offset, slice.count));
    steps.push_back(step);
  }
  if (values.empty()) return;
  // The fused kernel reads and writes each number once; division by gradient_divisor takes the mean
  // and clips.
  at::_fused_adamw_(values, gradients, first, second, /*max_exp_avg_sqs=*/{}, steps, learning_rate,
                    training_.beta1, training_.beta2, decays ? training_.weight_decay : 0.0,
                    training_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false, gradient_divisor);
}

void FlatAdamW::restore(const at::Tensor& first_moment, const at::Tensor& second_moment,
                        uint64_t steps) {
  first_moment_.copy_(first_moment);
  second_moment_.copy_(second_moment);
  steps_ = steps;
}

}  // namespace tessera::model
