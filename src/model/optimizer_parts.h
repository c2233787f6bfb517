// What a whole optimizer and a sharded one have in common.
#pragma once

#include <cmath>
#include <cstdint>

#include "tessera/core/run_spec.h"
#include "tessera/kernels/optimizer.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Weight decay is for matrices.
inline bool is_matrix(const ports::TensorLayout& tensor) { return tensor.shape.size() > 1; }

inline kernels::AdamSettings adam_settings(const core::TrainingSpec& training) {
  kernels::AdamSettings settings;
  settings.beta1 = training.beta1;
  settings.beta2 = training.beta2;
  settings.epsilon = training.epsilon;
  settings.weight_decay = training.weight_decay;
  settings.momentum_decay = training.nadam_momentum_decay;
  return settings;
}

// The constants of Adam's steps: AdamW's, or NAdam's where that is training.optimizer.
class AdamSchedule {
 public:
  explicit AdamSchedule(const core::TrainingSpec& training)
      : settings_(adam_settings(training)), nadam_(training.optimizer == core::OptimizerKind::kNAdam) {}

  // Of step number `step`, from 1.
  kernels::AdamConstants at(uint64_t step, double learning_rate) {
    return nadam_ ? kernels::nadam_constants(settings_, learning_rate, step, momentum_product(step))
                  : kernels::adamw_constants(settings_, learning_rate, step);
  }

 private:
  // The product of NAdam's momenta over the steps 1 to n, the same bits whether it was followed step
  // by step or is taken up in the middle. It needs no place in the state.
  double momentum_product(uint64_t step) {
    if (step < step_) step_ = 0, product_ = 1;
    // It ends soon: the product runs down to zero, or the warm-up is over.
    while (step_ < step && product_ > 0 && is_warming_up(step_ + 1)) {
      product_ *= kernels::nadam_momentum(settings_, ++step_);
    }
    return step_ == step || product_ == 0
               ? product_
               : product_ * std::pow(settings_.beta1, static_cast<double>(step - step_));
  }
  bool is_warming_up(uint64_t step) const {
    return kernels::nadam_momentum(settings_, step) != settings_.beta1;
  }

  const kernels::AdamSettings settings_;
  const bool nadam_;
  uint64_t step_ = 0;
  double product_ = 1;
};

// Muon's learning rate where Adam's is `learning_rate`: the schedule is a share of the peak.
inline double muon_learning_rate(const core::TrainingSpec& training, double learning_rate) {
  return learning_rate / training.learning_rate * training.muon_learning_rate;
}

}  // namespace tessera::model
