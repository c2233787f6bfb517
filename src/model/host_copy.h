// Flat vectors of fp32 between the host and a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace tessera::model {

at::Tensor to_device(const std::vector<float>& values, const at::Device& device);
std::vector<float> to_host(const at::Tensor& values);

// All of a tensor, to or from as many values in the host's memory. Each waits until it is done.
void copy_to_host(const at::Tensor& values, float* target);
void copy_from_host(const float* values, const at::Tensor& target);

}  // namespace tessera::model
