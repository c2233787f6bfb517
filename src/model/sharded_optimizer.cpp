#include "model/sharded_optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "model/failure.h"

namespace tessera::model {
namespace {

// Of the accumulator or a slice of it, which stays where it is.
kernels::GradientPlaces places_of(const at::Tensor& gradient) {
  kernels::GradientPlaces places;
  places.flat = gradient.const_data_ptr<float>();
  return places;
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(const core::TrainingSpec& training, const ShardLayout& layout,
                                   std::shared_ptr<const BoxGroup> group, const ShardedGradients& gradients,
                                   const at::TensorOptions& compute)
    : training_(training),
      layout_(layout),
      group_(std::move(group)),
      compute_(compute),
      schedule_(training),
      norm_(gradients.segments(), {}, compute.device()) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(compute.device());
  masters_ = at::zeros({layout_.shard_count()}, options);
  first_moment_ = at::zeros_like(masters_);
  second_moment_ = at::zeros_like(masters_);
  std::vector<double> loads(group_->size(), 0);
  for (size_t unit = 0; unit < layout_.units().size(); ++unit) parts_.push_back(make_part(unit, &loads));
}

// `loads`: what each worker has to orthogonalise of the units before; the next matrix goes to the least loaded.
ShardedOptimizer::Part ShardedOptimizer::make_part(size_t unit, std::vector<double>* loads) const {
  Part part;
  const at::Device device = compute_.device();
  std::vector<kernels::OptimizerSegment> segments;
  const bool muon = training_.optimizer == core::OptimizerKind::kMuon;
  for (const ShardLayout::Piece& piece : layout_.pieces(unit, own_slice())) {
    if (!muon || !is_for_muon(*piece.tensor)) {
      segments.push_back({piece.offset, piece.count, is_matrix(*piece.tensor)});
      continue;
    }
    const double shape = static_cast<double>(piece.tensor->shape[0]) / static_cast<double>(piece.tensor->shape[1]);
    part.muon.push_back({piece.offset, piece.count, static_cast<float>(std::sqrt(std::max(1.0, shape))),
                         at::full({1}, piece.offset, at::TensorOptions().dtype(at::kLong)).to(device)});
  }
  part.adam = std::make_unique<AdamPass>(segments, std::vector<int64_t>{}, device);
  for (const core::TensorLayout& tensor : layout_.units()[unit].tensors) {
    if (!muon || !is_for_muon(tensor)) continue;
    const auto least = std::min_element(loads->begin(), loads->end());
    const double side = static_cast<double>(std::min(tensor.shape[0], tensor.shape[1]));
    *least += static_cast<double>(tensor.count) * side;
    part.matrices.push_back({static_cast<int64_t>(tensor.offset), tensor.shape[0], tensor.shape[1],
                             static_cast<uint32_t>(least - loads->begin())});
  }
  return part;
}

at::Tensor ShardedOptimizer::shard_of(const at::Tensor& shard, size_t unit) const {
  return shard.narrow(0, layout_.slice_offset(unit), layout_.slice_count(unit));
}

StepTensors ShardedOptimizer::tensors_of(size_t unit, const ShardedGradients& gradients,
                                         const ShardedWeights& weights) const {
  return {shard_of(masters_, unit), places_of(gradients.slice(unit)), weights.slice(unit)};
}

// Each worker's sum of squares goes to all, who add them up in the order of the ranks.
at::Tensor ShardedOptimizer::sums_of_box(const at::Tensor& sums) const {
  if (layout_.shards() == 1) return sums;  // whole gradients: everybody has them all
  const at::Tensor own = sums.sum().view({1});
  const at::Tensor all = at::empty({static_cast<int64_t>(group_->size())}, own.options());
  Pending pending = group_->all_gather(own, all);
  finish(&pending);
  return all;
}

StatusOr<double> ShardedOptimizer::step(const ShardedGradients& gradients, double learning_rate, ShardedWeights* weights) {
  TESSERA_CHECK(gradients.microbatches() > 0);
  // The host waits for the norm only when all is enqueued: kernels do nothing where it is not finite.
  throw_if_error(norm_.enqueue(places_of(gradients.accumulator()), gradients.microbatches(), training_.clip_norm,
                               [this](const at::Tensor& sums) { return sums_of_box(sums); }));
  const kernels::AdamConstants constants = schedule_.at(steps_ + 1, learning_rate);
  weights->begin();
  for (size_t unit = 0; unit < parts_.size(); ++unit) {
    if (layout_.units()[unit].count == 0) continue;
    const StepTensors tensors = tensors_of(unit, gradients, *weights);
    throw_if_error(parts_[unit].adam->enqueue(tensors, shard_of(first_moment_, unit), shard_of(second_moment_, unit),
                                              constants, norm_.result()));
    if (!parts_[unit].matrices.empty()) step_muon(unit, tensors, learning_rate, norm_.result());
    weights->finish_unit(unit);
  }
  const kernels::GradientNorm norm = norm_.wait();
  if (norm.finite == 0) {
    weights->discard();
    return data_loss(
        "the gradient of {} microbatches is not finite; it was dropped and the weights are as before. If this repeats, lower "
        "training.learning_rate or set training.clip_norm",
        gradients.microbatches());
  }
  weights->publish();
  ++steps_;
  return norm.norm;
}

void ShardedOptimizer::step_muon(size_t unit, const StepTensors& tensors, double learning_rate,
                                 const kernels::GradientNorm* norm) {
  const Part& part = parts_[unit];
  const ShardUnit& place = layout_.units()[unit];
  const at::Device device = compute_.device();
  // Of the whole unit; computed in the compute weights' type, as MuonPass does.
  const at::Tensor updates = at::zeros({place.padded_count}, compute_);
  const at::Tensor own = updates.narrow(0, own_slice() * layout_.slice_count(unit), layout_.slice_count(unit));
  kernels::MuonParams params;
  params.matrices = 1;
  params.gradient = tensors.gradient;
  params.momentum = shard_of(first_moment_, unit).data_ptr<float>();
  params.values = tensors.masters.data_ptr<float>();
  params.norm = norm;
  params.momentum_factor = static_cast<float>(training_.muon_momentum);
  params.momentum_rate = static_cast<float>(1 - training_.muon_momentum);
  const double rate = muon_learning_rate(training_, learning_rate);
  params.keep = static_cast<float>(1 - rate * training_.muon_weight_decay);
  const WeightPointers weights = weight_pointers(tensors.compute_weights);
  params.weights_float = weights.as_float;
  params.weights_bfloat16 = weights.as_bfloat16;
  const auto each_piece = [&](MuonHalf half) {
    for (const Part::Piece& piece : part.muon) {
      kernels::MuonParams of_piece = params;
      of_piece.offsets = piece.place.const_data_ptr<int64_t>();
      of_piece.matrix_values = piece.count;
      of_piece.step = static_cast<float>(rate) * piece.step;
      set_muon_stack(own.narrow(0, piece.offset, piece.count), &of_piece);
      throw_if_error(run_muon(half, of_piece, device));
    }
  };
  each_piece(MuonHalf::kMomentum);
  if (layout_.shards() > 1) {
    Pending gather = group_->all_gather(own, updates);
    finish(&gather);
  }
  orthogonalise(part, updates);
  each_piece(MuonHalf::kApply);
}

// Each matrix in place, by its owner, for all.
void ShardedOptimizer::orthogonalise(const Part& part, const at::Tensor& updates) {
  std::vector<Pending> under_way;
  for (const Part::Matrix& matrix : part.matrices) {
    const at::Tensor flat = updates.narrow(0, matrix.offset, matrix.rows * matrix.columns);
    if (layout_.shards() == 1 || matrix.owner == group_->rank()) {
      const at::Tensor stack = flat.view({1, matrix.rows, matrix.columns});
      stack.copy_(newton_schulz(stack.clone()));
    }
  }
  if (layout_.shards() == 1) return;
  for (const Part::Matrix& matrix : part.matrices) {
    under_way.push_back(
        group_->broadcast(updates.narrow(0, matrix.offset, matrix.rows * matrix.columns), matrix.owner));
  }
  for (Pending& pending : under_way) finish(&pending);
}

void ShardedOptimizer::publish(ShardedWeights* weights) const {
  weights->begin();
  for (size_t unit = 0; unit < parts_.size(); ++unit) {
    if (layout_.units()[unit].count == 0) continue;
    weights->slice(unit).copy_(shard_of(masters_, unit));
    weights->finish_unit(unit);
  }
  weights->publish();
}

}  // namespace tessera::model
