#include "model/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>

#include "model/muon.h"
#include "model/optimizer_parts.h"

namespace tessera::model {
namespace {

int64_t count_of(const std::vector<ports::TensorLayout>& layout) {
  return layout.empty() ? 0 : static_cast<int64_t>(layout.back().offset + layout.back().count);
}

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

// AdamW and NAdam.
class Adam final : public Optimizer {
 public:
  Adam(const core::TrainingSpec& training, const std::vector<ports::TensorLayout>& layout,
       const at::Device& device, const std::vector<int64_t>& pieces)
      : Optimizer(training, count_of(layout), pieces, device),
        schedule_(training),
        pass_(segments_of(layout), pieces, device) {}

 private:
  Status update(const StepTensors& tensors, const kernels::GradientNorm* norm, uint64_t step,
                double learning_rate) override {
    return pass_.enqueue(tensors, first_moment_, second_moment_, schedule_.at(step, learning_rate), norm);
  }

  AdamSchedule schedule_;
  const AdamPass pass_;
};

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
       const at::Device& device, const std::vector<int64_t>& pieces)
      : Optimizer(training, count_of(layout), pieces, device),
        schedule_(training),
        adam_(segments_of(tensors_for_muon(layout, false)), pieces, device),
        muon_(tensors_for_muon(layout, true), pieces, device) {}

 private:
  Status update(const StepTensors& tensors, const kernels::GradientNorm* norm, uint64_t step,
                double learning_rate) override {
    TESSERA_RETURN_IF_ERROR(adam_.enqueue(tensors, first_moment_, second_moment_,
                                          schedule_.at(step, learning_rate), norm));
    MuonConstants constants;
    constants.momentum = training_.muon_momentum;
    constants.weight_decay = training_.muon_weight_decay;
    constants.learning_rate = muon_learning_rate(training_, learning_rate);
    return muon_.enqueue(tensors, first_moment_, constants, norm);
  }

  AdamSchedule schedule_;
  const AdamPass adam_;
  const MuonPass muon_;
};

}  // namespace

Optimizer::Optimizer(const core::TrainingSpec& training, int64_t count,
                     const std::vector<int64_t>& pieces, const at::Device& device)
    : training_(training),
      first_moment_(at::zeros({count}, at::TensorOptions().dtype(at::kFloat).device(device))),
      second_moment_(at::zeros_like(first_moment_)),
      pieces_(pieces.size(), device),
      norm_({{0, count, false}}, pieces, device) {}

StatusOr<double> Optimizer::step(const at::Tensor& masters, const GradientPieces& gradient,
                                 uint32_t microbatches, double learning_rate,
                                 const at::Tensor& compute_weights) {
  TESSERA_CHECK(microbatches > 0);
  for (const at::Tensor* flat : {&masters, &compute_weights}) {
    TESSERA_CHECK(flat->is_contiguous() && flat->sizes() == first_moment_.sizes());
    TESSERA_CHECK(flat->device() == first_moment_.device());
  }
  int64_t values = 0;
  for (const at::Tensor& piece : gradient) {
    TESSERA_CHECK(piece.is_contiguous() && piece.device() == first_moment_.device());
    values += piece.numel();
  }
  TESSERA_CHECK(values == first_moment_.numel());
  const kernels::GradientPlaces places = pieces_.set(gradient);
  TESSERA_RETURN_IF_ERROR(norm_.enqueue(places, microbatches, training_.clip_norm));
  TESSERA_RETURN_IF_ERROR(
      update({masters, places, compute_weights}, norm_.result(), steps_ + 1, learning_rate));
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
                                          const at::Device& device,
                                          const std::vector<int64_t>& pieces) {
  if (training.optimizer == core::OptimizerKind::kMuon) {
    return std::make_unique<Muon>(training, layout, device, pieces);
  }
  return std::make_unique<Adam>(training, layout, device, pieces);
}

}  // namespace tessera::model
