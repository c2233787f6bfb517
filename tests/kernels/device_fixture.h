// What tests of CUDA kernels share.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace tessera::kernels {

// Device memory between guard bytes. Lies `misalignment` bytes off a multiple of 256.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t size, size_t misalignment = 0)
      : begin_(kGuard + misalignment), size_(size) {
    EXPECT_EQ(cudaMalloc(&memory_, begin_ + size_ + kGuard), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory_, kPattern, begin_ + size_ + kGuard), cudaSuccess);
    wait();
  }
  ~DeviceBytes() {
    std::vector<uint8_t> bytes(begin_ + size_ + kGuard);
    EXPECT_EQ(cudaMemcpy(bytes.data(), memory_, bytes.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < bytes.size(); ++i) {
      if ((i < begin_ || i >= begin_ + size_) && bytes[i] != kPattern) {
        ADD_FAILURE() << "guard byte " << static_cast<int64_t>(i - begin_) << " of " << size_
                      << " was overwritten";
        break;
      }
    }
    EXPECT_EQ(cudaFree(memory_), cudaSuccess);
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  uint8_t* data() { return static_cast<uint8_t*>(memory_) + begin_; }
  void write(const void* source) {
    EXPECT_EQ(cudaMemcpy(data(), source, size_, cudaMemcpyHostToDevice), cudaSuccess);
    wait();
  }
  void read(void* target) {
    EXPECT_EQ(cudaMemcpy(target, data(), size_, cudaMemcpyDeviceToHost), cudaSuccess);
  }

 private:
  // cudaMemset and cudaMemcpy from pageable memory may return before the device is done, and the
  // tests' stream does not wait for the default stream, which they are on.
  static void wait() { EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess); }

  static constexpr size_t kGuard = 256;
  static constexpr int kPattern = 0xa5;
  void* memory_ = nullptr;
  size_t begin_;
  size_t size_;
};

// Skips where there is no GPU.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
    }
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) {
      EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    }
  }

  cudaStream_t stream_ = nullptr;
};

}  // namespace tessera::kernels
