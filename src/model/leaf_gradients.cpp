#include "model/leaf_gradients.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "tessera/base/status.h"

namespace tessera::model {

LeafGradients::LeafGradients(const std::vector<StageWeights::Leaf>& leaves, const at::Device& device,
                             bool keeps)
    : device_(device), keeps_(keeps), pieces_(leaves.size()) {
  int64_t next = 0;
  for (const StageWeights::Leaf& leaf : leaves) {
    TESSERA_CHECK(static_cast<int64_t>(leaf.offset) == next);
    begins_.push_back(next);
    counts_.push_back(leaf.tensor.numel());
    next += leaf.tensor.numel();
  }
}

at::Tensor& LeafGradients::piece(size_t index) {
  at::Tensor& tensor = pieces_[index];
  if (!tensor.defined()) {
    tensor = at::empty({counts_[index]}, at::TensorOptions().dtype(at::kFloat).device(device_));
  }
  return tensor;
}

GradientTarget LeafGradients::target(const at::Tensor& weight) {
  const auto found = std::lower_bound(begins_.begin(), begins_.end(), weight.storage_offset());
  TESSERA_CHECK(found != begins_.end() && *found == weight.storage_offset());
  const size_t index = static_cast<size_t>(found - begins_.begin());
  TESSERA_CHECK(counts_[index] == weight.numel());
  return {piece(index).view(weight.sizes()), accumulate_};
}

const GradientPieces& LeafGradients::pieces() {
  for (size_t index = 0; index < pieces_.size(); ++index) piece(index);
  return pieces_;
}

void LeafGradients::release() {
  if (!keeps_) pieces_.assign(begins_.size(), at::Tensor());
}

}  // namespace tessera::model
