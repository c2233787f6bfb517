#include "model/host_copy.h"

#include <ATen/ops/from_blob.h>

#include "tessera/base/large_vector.h"

namespace tessera::model {
namespace {

// Borrows and does not write.
at::Tensor borrow(const float* values, int64_t count) {
  return at::from_blob(const_cast<float*>(values), {count}, at::TensorOptions().dtype(at::kFloat));
}

}  // namespace

at::Tensor to_device(const std::vector<float>& values, const at::Device& device) {
  return borrow(values.data(), static_cast<int64_t>(values.size()))
      .to(at::TensorOptions().dtype(at::kFloat).device(device), /*non_blocking=*/false, /*copy=*/true);
}

std::vector<float> to_host(const at::Tensor& values) {
  auto host = large_vector<float>(static_cast<size_t>(values.numel()));
  copy_to_host(values, host.data());
  return host;
}

void copy_to_host(const at::Tensor& values, float* target) {
  if (values.numel() > 0) borrow(target, values.numel()).copy_(values);
}

void copy_from_host(const float* values, const at::Tensor& target) {
  if (target.numel() > 0) target.copy_(borrow(values, target.numel()));
}

}  // namespace tessera::model
