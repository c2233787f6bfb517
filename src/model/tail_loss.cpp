#include "model/tail_loss.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace tessera::model {
namespace {

constexpr int64_t kPieceBytes = int64_t{256} << 20;  // of logits
constexpr int64_t kRowStep = 128;

int64_t padded(int64_t vocabulary) {
  return (vocabulary + kVocabularyPiece - 1) / kVocabularyPiece * kVocabularyPiece;
}

// The head with its padding of zeros, so that no product has an odd side.
at::Tensor padded_head(const at::Tensor& head) {
  const int64_t rows = padded(head.size(0)), width = head.size(1);
  const int64_t end = head.storage_offset() + rows * width;
  TORCH_CHECK(static_cast<int64_t>(head.storage().nbytes()) >=
                  end * static_cast<int64_t>(head.element_size()),
              "the flat weights lack the padding of the output head");
  return at::as_strided(head.detach(), {rows, width}, {width, 1}, head.storage_offset());
}

}  // namespace

at::Tensor tail_forward(const TailWeights& weights, const at::Tensor& x, const at::Tensor& targets,
                        double epsilon, double share, MatrixProduct* product, TailState* state) {
  NormResult norm = norm_forward(x, weights.norm, epsilon);
  const at::Tensor head = padded_head(weights.head);
  const int64_t rows = x.size(0), columns = head.size(0), vocabulary = weights.head.size(0);
  const int64_t fitting = kPieceBytes / (columns * x.element_size()) / kRowStep * kRowStep;
  const int64_t piece = std::min(rows, std::max(fitting, kRowStep));
  const at::Tensor buffer = at::empty({piece, columns}, x.options());
  const at::Tensor losses = at::empty({rows}, x.options().dtype(at::kFloat));
  if (state != nullptr) {
    state->hidden_gradient = at::empty_like(x);
    state->head_gradient = at::empty({vocabulary, x.size(1)}, x.options().dtype(at::kFloat));
  }
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t count = std::min(piece, rows - begin);
    const at::Tensor hidden = norm.y.narrow(0, begin, count);
    const at::Tensor logits = buffer.narrow(0, 0, count);
    product->forward(logits, hidden, head);
    cross_entropy(logits, vocabulary, targets.narrow(0, begin, count),
                  losses.narrow(0, begin, count),
                  state != nullptr ? share / static_cast<double>(rows) : 0.0);
    if (state == nullptr) continue;
    product->input_gradient(state->hidden_gradient.narrow(0, begin, count), logits, head);
    product->weight_gradient(state->head_gradient, logits.narrow(1, 0, vocabulary), hidden,
                             /*accumulate=*/begin > 0);
  }
  if (state != nullptr) {
    state->x = x;
    state->norm = {at::Tensor(), norm.rstd};
  }
  return at::sum(losses, at::kDouble).div_(static_cast<double>(rows) / share);
}

at::Tensor tail_backward(const TailWeights& weights, TailState state, GradientSink* sink) {
  if (sink->wanted()) sink->target(weights.head).take(state.head_gradient);
  norm_backward(state.hidden_gradient, state.norm, state.x, weights.norm, /*residual_gradient=*/{},
                sink->target(weights.norm));
  return state.hidden_gradient;
}

}  // namespace tessera::model
