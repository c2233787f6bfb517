// Products that end in SwiGLU on the GPU: what the host does. Compiled for sm_90a alone.
//
// Own kernels for these two, since fusing saves a pass over gate_up; cuBLASLt's plain products are
// as fast as the same kernel without SwiGLU (docs/performance.md).
#include <cudaTypedefs.h>

#include <initializer_list>
#include <vector>

#include "swiglu_product_kernel.cuh"
#include "tessera/kernels/swiglu_product.h"

namespace tessera::kernels {
namespace {

constexpr int64_t kMaximumSize = int64_t{1} << 24;   // of rows, width and depth
constexpr int64_t kMaximumTiles = int64_t{1} << 30;  // of a product
// Of the multiprocessors' time, the rest being spent waiting for the last tiles or on rows that are
// not there. Of 38 products with less, 25 took longer than one after the other, up to 1.8 times as
// long; of 26 with more, none did (docs/performance.md).
constexpr double kBusyShare = 0.9;

using Encode = PFN_cuTensorMapEncodeTiled_v12000;
Encode encoder() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                              12000, cudaEnableDefault, &result);
    const bool is_there = code == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return is_there ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  return found;
}

// Multiprocessors of the current device; 0: it does not run these kernels.
int multiprocessors() {
  static const std::vector<int> of_devices = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::vector<int> found(static_cast<size_t>(count), 0);
    for (int device = 0; device < count && encoder() != nullptr; ++device) {
      int major = 0, minor = 0, there = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      cudaDeviceGetAttribute(&there, cudaDevAttrMultiProcessorCount, device);
      if (major == 9 && minor == 0) found[static_cast<size_t>(device)] = there;
    }
    return found;
  }();
  int device = 0;
  if (of_devices.empty() || cudaGetDevice(&device) != cudaSuccess) return 0;
  return of_devices[static_cast<size_t>(device)];
}

bool are_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

template <class End, class Params>
bool are_sizes(const Params& params) {
  return params.rows >= 1 && params.rows <= kMaximumSize && params.width >= 1 &&
         params.width <= kMaximumSize && params.width % End::kColumns == 0 &&
         params.depth <= kMaximumSize && params.depth % kTileK == 0 &&
         params.depth / kTileK >= End::kChunks &&
         (params.rows / kTileM + 1) * (params.width / End::kColumns) <= kMaximumTiles;
}

template <class End, class Params>
bool keeps_busy(const Params& params) {
  constexpr int64_t kRows = kTileM * End::kCluster;
  const int64_t clusters = multiprocessors() / End::kCluster;
  const int64_t tiles = (params.rows + kRows - 1) / kRows * (params.width / End::kColumns);
  const int64_t rounds = (tiles + clusters - 1) / clusters;
  const double useful =
      static_cast<double>(params.rows) / kRows * static_cast<double>(params.width / End::kColumns);
  return useful >= kBusyShare * static_cast<double>(rounds * clusters);
}

// Boxes of `box_rows` rows of 64 columns of a row-major matrix of bf16.
bool make_map(CUtensorMap* map, const void* address, int64_t rows, int64_t columns, int box_rows,
              CUtensorMapL2promotion promotion) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t ones[] = {1, 1};
  return encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(address), sizes,
                   strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Boxes of twice 64 columns, kTileK rows deep, of a row-major matrix [depth, columns] of bf16.
bool make_deep_map(CUtensorMap* map, const void* address, int64_t depth, int64_t columns) {
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(depth),
                              static_cast<cuuint64_t>(columns / 64)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * 2, 128};
  const cuuint32_t box[] = {64, kTileK, 2};
  const cuuint32_t ones[] = {1, 1, 1};
  return encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(address), sizes,
                   strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool make_factor_map(CUtensorMap* map, const void* address, int64_t rows, int64_t depth,
                     int box_rows) {
  return make_map(map, address, rows, depth, box_rows, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}
bool make_piece_map(CUtensorMap* map, const void* address, int64_t rows, int64_t columns) {
  return make_map(map, address, rows, columns, 16, CU_TENSOR_MAP_L2_PROMOTION_NONE);
}

// `arguments`: with the factors' maps.
template <class End, class Params>
cudaError_t launch_product(SwigluProductArguments arguments, const Params& params,
                           void* stream_handle) {
  if (!make_piece_map(&arguments.gate_up, params.gate_up, params.rows, 2 * params.width)) {
    return cudaErrorInvalidValue;
  }
  arguments.makes_h = params.h != nullptr;
  if (arguments.makes_h && !make_piece_map(&arguments.h, params.h, params.rows, params.width)) {
    return cudaErrorInvalidValue;
  }
  constexpr int64_t kRows = kTileM * End::kCluster;
  arguments.width = static_cast<int>(params.width);
  arguments.row_tiles = static_cast<int>((params.rows + kRows - 1) / kRows);
  arguments.column_tiles = static_cast<int>(params.width / End::kColumns);
  arguments.k_blocks = static_cast<int>(params.depth / kTileK);

  constexpr int kBytes = ProductMemory<End>::kBytes;
  const cudaError_t code = cudaFuncSetAttribute(
      swiglu_product_kernel<End>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (code != cudaSuccess) return code;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = End::kCluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors() / End::kCluster * End::kCluster));
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = static_cast<cudaStream_t>(stream_handle);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, swiglu_product_kernel<End>, arguments);
}

// Chunks of 16 columns delay the next tile's products least, but a tile must have as many blocks.
using BackwardEnd = SwigluBackwardEnd<16>;
using ShallowBackwardEnd = SwigluBackwardEnd<8>;

template <class End>
cudaError_t launch_backward(const SwigluProductBackwardParams& params, void* stream_handle) {
  SwigluProductArguments arguments = {};
  if (!make_factor_map(&arguments.a, params.dy, params.rows, params.depth, kTileM) ||
      !make_deep_map(&arguments.b, params.weight, params.depth, params.width)) {
    return cudaErrorInvalidValue;
  }
  return launch_product<End>(arguments, params, stream_handle);
}

}  // namespace

bool swiglu_product_forward_fits(const SwigluProductForwardParams& params) {
  return multiprocessors() != 0 && are_sizes<SwigluForwardEnd>(params) && params.x != nullptr &&
         params.weight != nullptr && params.gate_up != nullptr && params.h != nullptr &&
         are_aligned({params.x, params.weight, params.gate_up, params.h});
}

bool swiglu_product_backward_fits(const SwigluProductBackwardParams& params) {
  return multiprocessors() != 0 && are_sizes<ShallowBackwardEnd>(params) && params.dy != nullptr &&
         params.weight != nullptr && params.gate_up != nullptr &&
         are_aligned({params.dy, params.weight, params.gate_up, params.h});
}

bool swiglu_product_forward_pays(const SwigluProductForwardParams& params) {
  return swiglu_product_forward_fits(params) && keeps_busy<SwigluForwardEnd>(params);
}

bool swiglu_product_backward_pays(const SwigluProductBackwardParams& params) {
  return swiglu_product_backward_fits(params) && keeps_busy<BackwardEnd>(params);
}

int swiglu_product_forward_cuda(const SwigluProductForwardParams& params, void* stream_handle) {
  if (!swiglu_product_forward_fits(params)) return cudaErrorInvalidValue;
  SwigluProductArguments arguments = {};
  if (!make_factor_map(&arguments.a, params.x, params.rows, params.depth, kTileM) ||
      !make_factor_map(&arguments.b, params.weight, 2 * params.width, params.depth, 64)) {
    return cudaErrorInvalidValue;
  }
  return launch_product<SwigluForwardEnd>(arguments, params, stream_handle);
}

int swiglu_product_backward_cuda(const SwigluProductBackwardParams& params, void* stream_handle) {
  if (!swiglu_product_backward_fits(params)) return cudaErrorInvalidValue;
  return are_sizes<BackwardEnd>(params)
             ? launch_backward<BackwardEnd>(params, stream_handle)
             : launch_backward<ShallowBackwardEnd>(params, stream_handle);
}

}  // namespace tessera::kernels
