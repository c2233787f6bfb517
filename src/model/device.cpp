// Which device, and how much memory it has. No torch: the CUDA runtime and the operating system are
// asked directly.
#include <unistd.h>

#include <charconv>
#include <string>
#include <string_view>

#include "tessera/model/stage_engine.h"

#ifdef TESSERA_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace tessera::model {
namespace {

constexpr std::string_view kGpuPrefix = "cuda:";

struct GpuCount {
  int count = 0;
  std::string reason;  // why there is none
};

GpuCount count_gpus() {
#ifdef TESSERA_WITH_CUDA
  GpuCount gpus;
  const cudaError_t code = cudaGetDeviceCount(&gpus.count);
  if (code != cudaSuccess) {
    gpus.count = 0;
    gpus.reason = cudaGetErrorString(code);
    cudaGetLastError();  // not an error of whoever calls CUDA next
  } else if (gpus.count == 0) {
    gpus.reason = "the driver reports no GPU";
  }
  return gpus;
#else
  return {0, "this program was built without CUDA"};
#endif
}

// N of "cuda:N"; -1 if `device` has another form.
int gpu_index(std::string_view device) {
  if (device.substr(0, kGpuPrefix.size()) != kGpuPrefix) return -1;
  const std::string_view digits = device.substr(kGpuPrefix.size());
  int index = -1;
  const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  const bool whole = failure == std::errc() && end == digits.data() + digits.size();
  return whole && index >= 0 ? index : -1;
}

}  // namespace

StatusOr<std::string> choose_device(const std::string& wanted) {
  if (wanted == "cpu") return std::string("cpu");
  const bool automatic = wanted == "auto";
  const int index = automatic || wanted == "cuda" ? 0 : gpu_index(wanted);
  if (index < 0) {
    return invalid_argument("device: \"{}\" is not known; use auto, cpu, cuda or cuda:N", wanted);
  }
  const GpuCount gpus = count_gpus();
  if (index < gpus.count) return std::string(kGpuPrefix) + std::to_string(index);
  if (automatic) return std::string("cpu");
  if (gpus.count == 0) {
    return failed_precondition(
        "device: \"{}\" is wanted, but there is no usable GPU: {}. Use cpu or auto", wanted,
        gpus.reason);
  }
  return failed_precondition(
      "device: \"{}\" is wanted, but this machine has {} GPUs (cuda:0 to cuda:{})", wanted,
      gpus.count, gpus.count - 1);
}

bool multiplies_fp8([[maybe_unused]] const std::string& device) {
#ifdef TESSERA_WITH_CUDA
  int major = 0, minor = 0;
  const int index = gpu_index(device);
  if (index >= 0 &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) == cudaSuccess) {
    return 10 * major + minor >= 89;
  }
  cudaGetLastError();
#endif
  return false;
}

uint64_t device_memory_bytes(const std::string& device) {
  if (device == "cpu") {
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGE_SIZE);
    return pages > 0 && page_bytes > 0
               ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes)
               : 0;
  }
#ifdef TESSERA_WITH_CUDA
  const int index = gpu_index(device);
  if (index < 0 || index >= count_gpus().count) return 0;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, index) == cudaSuccess) return properties.totalGlobalMem;
  cudaGetLastError();
#endif
  return 0;
}

}  // namespace tessera::model
