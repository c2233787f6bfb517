#include "model/optimizer.h"

#include <ATen/ATen.h>

namespace tessera::model {
namespace {

int64_t count_of(const std::vector<ports::TensorLayout>& layout) {
  return layout.empty() ? 0 : static_cast<int64_t>(layout.back().offset + layout.back().count);
}

// Weight decay is for matrices.
std::vector<kernels::OptimizerSegment> segments_of(const std::vector<ports::TensorLayout>& layout) {
  std::vector<kernels::OptimizerSegment> segments;
  for (const ports::TensorLayout& tensor : layout) {
    segments.push_back({static_cast<int64_t>(tensor.offset), static_cast<int64_t>(tensor.count),
                        tensor.shape.size() > 1});
  }
  return segments;
}

kernels::AdamSettings settings_of(const core::TrainingSpec& training) {
  kernels::AdamSettings settings;
  settings.beta1 = training.beta1;
  settings.beta2 = training.beta2;
  settings.epsilon = training.epsilon;
  settings.weight_decay = training.weight_decay;
  return settings;
}

class AdamW final : public Optimizer {
 public:
  AdamW(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
        const at::Device& device)
      : Optimizer(training, count_of(layout), device),
        settings_(settings_of(training)),
        pass_(segments_of(layout), device) {}

 private:
  Status update(const StepTensors& tensors, const kernels::GradientNorm* norm, uint64_t step,
                double learning_rate) override {
    return pass_.enqueue(tensors, first_moment_, second_moment_,
                         kernels::adamw_constants(settings_, learning_rate, step), norm);
  }

  const kernels::AdamSettings settings_;
  const AdamPass pass_;
};

}  // namespace

Optimizer::Optimizer(const core::TrainingSpec& training, int64_t count, const at::Device& device)
    : training_(training),
      first_moment_(at::zeros({count}, at::TensorOptions().dtype(at::kFloat).device(device))),
      second_moment_(at::zeros_like(first_moment_)),
      norm_(count, device) {}

StatusOr<double> Optimizer::step(const at::Tensor& masters, const at::Tensor& gradient,
                                 uint32_t microbatches, double learning_rate,
                                 const at::Tensor& compute_weights) {
  TESSERA_CHECK(microbatches > 0);
  TESSERA_RETURN_IF_ERROR(norm_.enqueue(gradient, microbatches, training_.clip_norm));
  TESSERA_RETURN_IF_ERROR(
      update({masters, gradient, compute_weights}, norm_.result(), steps_ + 1, learning_rate));
  const kernels::GradientNorm norm = norm_.wait();
  if (norm.finite == 0) {
    return data_loss(
        "the gradient of {} microbatches is not finite; it was dropped and the weights are as "
        "before. If this repeats, lower training.learning_rate or set training.clip_norm",
        microbatches);
  }
  ++steps_;
  return norm.norm;
}

void Optimizer::restore(const at::Tensor& first_moment, const at::Tensor& second_moment,
                        uint64_t steps) {
  first_moment_.copy_(first_moment);
  second_moment_.copy_(second_moment);
  steps_ = steps;
}

std::unique_ptr<Optimizer> make_optimizer(const core::TrainingSpec& training,
                                          const std::vector<ports::TensorLayout>& layout,
                                          const at::Device& device) {
  return std::make_unique<AdamW>(training, layout, device);
}

}  // namespace tessera::model
