#include "model/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "model/muon.h"

namespace tessera::model {
namespace {

int64_t count_of(const std::vector<ports::TensorLayout>& layout) {
  return layout.empty() ? 0 : static_cast<int64_t>(layout.back().offset + layout.back().count);
}

bool is_matrix(const ports::TensorLayout& tensor) { return tensor.shape.size() > 1; }

// Weight decay is for matrices.
std::vector<kernels::OptimizerSegment> segments_of(
    const std::vector<ports::TensorLayout>& tensors) {
  std::vector<kernels::OptimizerSegment> segments;
  for (const ports::TensorLayout& tensor : tensors) {
    segments.push_back({static_cast<int64_t>(tensor.offset), static_cast<int64_t>(tensor.count),
                        is_matrix(tensor)});
  }
  return segments;
}

kernels::AdamSettings settings_of(const core::TrainingSpec& training) {
  kernels::AdamSettings settings;
  settings.beta1 = training.beta1;
  settings.beta2 = training.beta2;
  settings.epsilon = training.epsilon;
  settings.weight_decay = training.weight_decay;
  settings.momentum_decay = training.nadam_momentum_decay;
  return settings;
}

// The product of NAdam's momenta over the steps 1 to n, the same bits whether it was followed step
// by step or is taken up in the middle. It needs no place in the state.
class MomentumProduct {
 public:
  explicit MomentumProduct(const kernels::AdamSettings& settings) : settings_(settings) {}

  double at(uint64_t step) {
    if (step < step_) step_ = 0, product_ = 1;
    // It ends soon: the product runs down to zero, or the warm-up is over.
    while (step_ < step && product_ > 0 && is_warming_up(step_ + 1)) {
      product_ *= kernels::nadam_momentum(settings_, ++step_);
    }
    return step_ == step || product_ == 0
               ? product_
               : product_ * std::pow(settings_.beta1, static_cast<double>(step - step_));
  }

 private:
  bool is_warming_up(uint64_t step) const {
    return kernels::nadam_momentum(settings_, step) != settings_.beta1;
  }
  const kernels::AdamSettings settings_;
  uint64_t step_ = 0;
  double product_ = 1;
};

// AdamW and NAdam.
class Adam final : public Optimizer {
 public:
  Adam(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
       const at::Device& device)
      : Optimizer(training, count_of(layout), device),
        settings_(settings_of(training)),
        momentum_product_(settings_),
        pass_(segments_of(layout), device) {}

 private:
  Status update(const StepTensors& tensors, const kernels::GradientNorm* norm, uint64_t step,
                double learning_rate) override {
    const kernels::AdamConstants constants =
        training_.optimizer == core::OptimizerKind::kNAdam
            ? kernels::nadam_constants(settings_, learning_rate, step, momentum_product_.at(step))
            : kernels::adamw_constants(settings_, learning_rate, step);
    return pass_.enqueue(tensors, first_moment_, second_moment_, constants, norm);
  }

  const kernels::AdamSettings settings_;
  MomentumProduct momentum_product_;
  const AdamPass pass_;
};

// Muon is for hidden weights: the matrices of the layers. Embedding, head, anchors and boundary
// matrices turn ids and codes into hidden states and back, and get AdamW, as vectors do.
bool is_for_muon(const ports::TensorLayout& tensor) {
  return is_matrix(tensor) && tensor.name.starts_with("model.layers.");
}

std::vector<ports::TensorLayout> tensors_for_muon(const std::vector<ports::TensorLayout>& layout,
                                                  bool for_muon) {
  std::vector<ports::TensorLayout> tensors;
  std::copy_if(layout.begin(), layout.end(), std::back_inserter(tensors),
               [&](const ports::TensorLayout& tensor) { return is_for_muon(tensor) == for_muon; });
  return tensors;
}

// The momentum lies in the first moment; the second moment of Muon's matrices stays as it is.
class Muon final : public Optimizer {
 public:
  Muon(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
       const at::Device& device)
      : Optimizer(training, count_of(layout), device),
        settings_(settings_of(training)),
        adam_(segments_of(tensors_for_muon(layout, false)), device),
        muon_(tensors_for_muon(layout, true), device) {}

 private:
  Status update(const StepTensors& tensors, const kernels::GradientNorm* norm, uint64_t step,
                double learning_rate) override {
    TESSERA_RETURN_IF_ERROR(adam_.enqueue(tensors, first_moment_, second_moment_,
                                          kernels::adamw_constants(settings_, learning_rate, step),
                                          norm));
    MuonConstants constants;
    constants.momentum = training_.muon_momentum;
    constants.weight_decay = training_.muon_weight_decay;
    // The schedule is a share of the peak.
    constants.learning_rate =
        learning_rate / training_.learning_rate * training_.muon_learning_rate;
    return muon_.enqueue(tensors, first_moment_, constants, norm);
  }

  const kernels::AdamSettings settings_;
  const AdamPass adam_;
  const MuonPass muon_;
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
  for (const at::Tensor* flat : {&masters, &gradient, &compute_weights}) {
    TESSERA_CHECK(flat->is_contiguous() && flat->sizes() == first_moment_.sizes());
    TESSERA_CHECK(flat->device() == first_moment_.device());
  }
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
  if (training.optimizer == core::OptimizerKind::kMuon) {
    return std::make_unique<Muon>(training, layout, device);
  }
  return std::make_unique<Adam>(training, layout, device);
}

}  // namespace tessera::model
