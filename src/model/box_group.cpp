#include "model/box_group.h"

#include <c10/util/Exception.h>

#include <utility>

#include "model/failure.h"

namespace tessera::model {
namespace {

ports::Numbers numbers(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "a collective's tensor must be contiguous");
  ports::Numbers numbers{tensor.data_ptr(), static_cast<uint64_t>(tensor.numel())};
  if (tensor.scalar_type() == at::kBFloat16) {
    numbers.type = ports::NumberType::kBFloat16;
  } else if (tensor.scalar_type() == at::kDouble) {
    numbers.type = ports::NumberType::kDouble;
  } else {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat, "a collective of ", tensor.scalar_type());
  }
  return numbers;
}

Pending started(ports::PendingResult result) {
  throw_if_error(result.status());
  return *std::move(result);
}

}  // namespace

Pending BoxGroup::all_reduce(const at::Tensor& tensor) const { return started(group_->all_reduce(numbers(tensor))); }
Pending BoxGroup::reduce_scatter(const at::Tensor& in, const at::Tensor& out) const {
  return started(group_->reduce_scatter(numbers(in), numbers(out)));
}
Pending BoxGroup::all_gather(const at::Tensor& in, const at::Tensor& out) const {
  return started(group_->all_gather(numbers(in), numbers(out)));
}
Pending BoxGroup::broadcast(const at::Tensor& tensor, uint32_t root) const {
  return started(group_->broadcast(numbers(tensor), root));
}

void finish(Pending* pending) {
  if (*pending) throw_if_error(std::exchange(*pending, nullptr)->wait());
}

}  // namespace tessera::model
