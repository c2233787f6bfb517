#include "model/plain_optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace tessera::model {
namespace {

// torch.optim.Muon's Newton-Schulz, of one matrix.
at::Tensor orthogonalised(const at::Tensor& update) {
  const bool tall = update.size(0) > update.size(1);
  at::Tensor x = update.is_cuda() ? update.to(at::kBFloat16) : update.clone();
  if (tall) x = x.t();
  x.div_(x.norm().clamp_min(1e-7));
  for (int i = 0; i < 5; ++i) {
    const at::Tensor gram = at::mm(x, x.t());
    const at::Tensor polynomial = at::addmm(gram, gram, gram, -4.7750, 2.0315);
    x = at::addmm(x, polynomial, x, 3.4445);
  }
  return tall ? x.t() : x;
}

bool is_hidden_matrix(const ports::TensorLayout& tensor) {
  return tensor.shape.size() > 1 && tensor.name.starts_with("model.layers.");
}

}  // namespace

PlainOptimizer::PlainOptimizer(const core::TrainingSpec& training,
                               const std::vector<ports::TensorLayout>& layout,
                               const at::Tensor& masters)
    : training_(training),
      layout_(layout),
      first_moment_(at::zeros_like(masters)),
      second_moment_(at::zeros_like(masters)) {}

PlainOptimizer::Slice PlainOptimizer::slice(const ports::TensorLayout& tensor,
                                            const at::Tensor& masters,
                                            const at::Tensor& gradient) const {
  const auto part = [&](const at::Tensor& flat) {
    return flat.narrow(0, static_cast<int64_t>(tensor.offset), static_cast<int64_t>(tensor.count))
        .view(tensor.shape);
  };
  return {part(masters), part(gradient), part(first_moment_), part(second_moment_)};
}

void PlainOptimizer::step(const at::Tensor& masters, const at::Tensor& gradient,
                          double learning_rate, const at::Tensor& compute_weights) {
  ++step_;
  const double norm = at::linalg_vector_norm(gradient).item<double>();
  const double scale =
      training_.clip_norm > 0 ? std::min(1.0, training_.clip_norm / (norm + 1e-6)) : 1.0;
  const at::Tensor divisor = at::full({}, 1 / scale, masters.options());
  std::vector<Slice> matrices, vectors;
  for (const ports::TensorLayout& tensor : layout_) {
    const Slice part = slice(tensor, masters, gradient);
    const bool matrix = tensor.shape.size() > 1;
    if (training_.optimizer == core::OptimizerKind::kNAdam) {
      nadam(part, matrix ? training_.weight_decay : 0, learning_rate, scale);
    } else if (training_.optimizer == core::OptimizerKind::kMuon && is_hidden_matrix(tensor)) {
      muon(part, learning_rate / training_.learning_rate * training_.muon_learning_rate, scale);
    } else {
      (matrix ? matrices : vectors).push_back(part);
    }
  }
  adamw(matrices, training_.weight_decay, learning_rate, divisor);
  adamw(vectors, 0, learning_rate, divisor);
  compute_weights.copy_(masters);
}

void PlainOptimizer::adamw(const std::vector<Slice>& slices, double weight_decay,
                           double learning_rate, const at::Tensor& divisor) {
  if (slices.empty()) return;
  std::vector<at::Tensor> values, gradients, first, second, steps;
  const at::Tensor step = at::full({}, static_cast<double>(step_), divisor.options());
  for (const Slice& part : slices) {
    values.push_back(part.values);
    gradients.push_back(part.gradient);
    first.push_back(part.first);
    second.push_back(part.second);
    steps.push_back(step);
  }
  at::_fused_adamw_(values, gradients, first, second, /*max_exp_avg_sqs=*/{}, steps, learning_rate,
                    training_.beta1, training_.beta2, weight_decay, training_.epsilon,
                    /*amsgrad=*/false, /*maximize=*/false, divisor);
}

void PlainOptimizer::nadam(const Slice& part, double weight_decay, double learning_rate,
                           double scale) {
  const double age = static_cast<double>(step_);
  const auto momentum = [&](double step) {
    return training_.beta1 * (1 - 0.5 * std::pow(0.96, step * training_.nadam_momentum_decay));
  };
  double product = 1;  // of a young run: the cost is not in it
  for (int64_t i = 1; i <= step_; ++i) product *= momentum(static_cast<double>(i));
  part.gradient.mul_(scale);
  part.values.mul_(1 - learning_rate * weight_decay);
  part.first.lerp_(part.gradient, 1 - training_.beta1);
  part.second.mul_(training_.beta2).addcmul_(part.gradient, part.gradient, 1 - training_.beta2);
  const at::Tensor root =
      part.second.div(1 - std::pow(training_.beta2, age)).sqrt_().add_(training_.epsilon);
  part.values.addcdiv_(part.gradient, root, -learning_rate * (1 - momentum(age)) / (1 - product));
  const double next = momentum(age + 1);
  part.values.addcdiv_(part.first, root, -learning_rate * next / (1 - product * next));
}

void PlainOptimizer::muon(const Slice& part, double learning_rate, double scale) {
  part.gradient.mul_(scale);
  part.first.lerp_(part.gradient, 1 - training_.muon_momentum);
  const at::Tensor direction =
      orthogonalised(part.gradient.lerp(part.first, training_.muon_momentum));
  const double rows = static_cast<double>(part.values.size(0));
  const double columns = static_cast<double>(part.values.size(1));
  part.values.mul_(1 - learning_rate * training_.muon_weight_decay);
  part.values.add_(direction, -learning_rate * std::sqrt(std::max(1.0, rows / columns)));
}

}  // namespace tessera::model
