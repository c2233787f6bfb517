// The second stage of sums of columns.
#include "row_group.cuh"

namespace tessera::kernels {
namespace {

constexpr int kTile = 32;

// A block has 32 columns, a line of memory in every row; thread row y adds rows y, y + 32, ...
__global__ void __launch_bounds__(kTile* kTile)
    sum_columns_kernel(const float* __restrict__ partials, int rows, int64_t width, bool accumulate,
                       float* __restrict__ output) {
  __shared__ float sums[kTile][kTile];
  const int64_t column = int64_t{blockIdx.x} * kTile + threadIdx.x;
  float sum = 0.0f;
  if (column < width) {
#pragma unroll 8
    for (int row = threadIdx.y; row < rows; row += kTile) {
      sum += __ldg(partials + row * width + column);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
#pragma unroll
  for (int half = kTile / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < half) {
      sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
    }
  }
  if (threadIdx.y != 0 || column >= width) return;
  output[column] = (accumulate ? output[column] : 0.0f) + sums[0][threadIdx.x];
}

}  // namespace

cudaError_t sum_columns(const float* partials, int64_t rows, int64_t width, bool accumulate,
                        float* output, cudaStream_t stream) {
  return launch(sum_columns_kernel, (width + kTile - 1) / kTile, dim3(kTile, kTile), stream,
                partials, static_cast<int>(rows), width, accumulate, output);
}

}  // namespace tessera::kernels
