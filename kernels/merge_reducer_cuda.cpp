// Reductions of a merge on a GPU: the kernels of merge_wire.cu and merge.cu, several blocks a launch.
//
// The uploads' blocks lie one behind the other, input by input, so that they are one run to decode and to measure. What goes to
// the device is one copy, what comes back another; the host's pinned memory has the same offsets for both:
//   in    numbers | addresses of the inputs' values | weights | payloads [input][block]
//   out   energies | overlaps | totals | results [block]
//   work  values [input][block] | sum | factors
#include <cuda_runtime_api.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>

#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_reducer.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::kernels {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kLeastLaneBytes = uint64_t{1} << 20;

Status status_of(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return ok_status();
  cudaGetLastError();  // not an error of whoever calls CUDA next
  return internal_error("the merge's reduction on the GPU: {}: {}", what, cudaGetErrorString(code));
}

// Offsets in a lane's memory.
struct Layout {
  explicit Layout(const MergeReduction& reduction)
      : blocks(reduction.input_count * reduction.block_count),
        upload_bytes(merge_block_bytes(reduction.upload_format, reduction.block_values)),
        result_bytes(merge_block_bytes(reduction.result_format, reduction.block_values)) {
    const uint64_t count = reduction.block_count, value_bytes = reduction.block_values * sizeof(float);
    numbers = place(count * sizeof(uint64_t));
    addresses = place(reduction.input_count * sizeof(const float*));
    weights = place(reduction.input_count * sizeof(float));
    payloads = place(blocks * upload_bytes);
    energies = place(blocks * sizeof(double));
    overlaps = place(blocks * sizeof(double));
    totals = place(count * sizeof(double));
    results = place(count * result_bytes);
    values = place(blocks * value_bytes);
    sum = place(count * value_bytes);
    factors = place(blocks * sizeof(float));
  }
  uint64_t in_bytes() const { return energies; }
  uint64_t host_bytes() const { return values; }
  uint64_t device_bytes() const { return end; }

  uint64_t blocks, upload_bytes, result_bytes;
  uint64_t numbers, addresses, weights, payloads;
  uint64_t energies, overlaps, totals, results;
  uint64_t values, sum, factors;

 private:
  uint64_t place(uint64_t bytes) {
    const uint64_t begin = end;
    end = (end + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }
  uint64_t end = 0;
};

// One reduction at a time; the device is current.
class Lane {
 public:
  Lane() = default;
  ~Lane() {
    cudaFree(device_);
    cudaFreeHost(host_);
    if (done_ != nullptr) cudaEventDestroy(done_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  Status open() {
    int least = 0, greatest = 0;
    TESSERA_RETURN_IF_ERROR(status_of(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities"));
    TESSERA_RETURN_IF_ERROR(status_of(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, least), "a stream"));
    // Who waits sleeps: spinning would take a core from the host's part of the compute stream.
    return status_of(cudaEventCreateWithFlags(&done_, cudaEventBlockingSync | cudaEventDisableTiming), "an event");
  }

  Status reduce(const MergeReduction& reduction) {
    const Layout layout(reduction);
    TESSERA_RETURN_IF_ERROR(grow(layout));
    const Status status = run(reduction, layout);
    if (!status.ok()) cudaStreamSynchronize(stream_);  // what was begun still reads and writes the lane's memory
    return status;
  }

 private:
  Status run(const MergeReduction& reduction, const Layout& layout) {
    fill(reduction, layout);
    TESSERA_RETURN_IF_ERROR(
        status_of(cudaMemcpyAsync(device_, host_, layout.in_bytes(), cudaMemcpyHostToDevice, stream_), "the uploads' copy"));
    TESSERA_RETURN_IF_ERROR(status_of(static_cast<cudaError_t>(launch(reduction, layout)), "a kernel"));
    TESSERA_RETURN_IF_ERROR(status_of(cudaMemcpyAsync(host_ + layout.energies, device_ + layout.energies,
                                                      layout.host_bytes() - layout.energies, cudaMemcpyDeviceToHost, stream_),
                                      "the results' copy"));
    TESSERA_RETURN_IF_ERROR(status_of(cudaEventRecord(done_, stream_), "an event"));
    TESSERA_RETURN_IF_ERROR(status_of(cudaEventSynchronize(done_), "waiting"));
    const uint64_t measures = layout.blocks * sizeof(double);
    std::memcpy(reduction.energies, host_ + layout.energies, measures);
    std::memcpy(reduction.overlaps, host_ + layout.overlaps, measures);
    std::memcpy(reduction.totals, host_ + layout.totals, reduction.block_count * sizeof(double));
    for (uint64_t b = 0; b < reduction.block_count; ++b) {
      std::memcpy(reduction.results[b], host_ + layout.results + b * layout.result_bytes, layout.result_bytes);
    }
    return ok_status();
  }

  // To powers of two, so that it happens a few times in a process: giving memory back waits for the whole device.
  Status grow(const Layout& layout) {
    if (layout.device_bytes() > device_bytes_) {
      uint64_t wanted = kLeastLaneBytes;
      while (wanted < layout.device_bytes()) wanted *= 2;
      TESSERA_RETURN_IF_ERROR(status_of(cudaFree(std::exchange(device_, nullptr)), "giving memory back"));
      device_bytes_ = 0;
      TESSERA_RETURN_IF_ERROR(status_of(cudaMalloc(reinterpret_cast<void**>(&device_), wanted), "device memory"));
      device_bytes_ = wanted;
    }
    if (layout.host_bytes() > host_bytes_) {
      uint64_t wanted = kLeastLaneBytes;
      while (wanted < layout.host_bytes()) wanted *= 2;
      TESSERA_RETURN_IF_ERROR(status_of(cudaFreeHost(std::exchange(host_, nullptr)), "giving pinned memory back"));
      host_bytes_ = 0;
      TESSERA_RETURN_IF_ERROR(
          status_of(cudaHostAlloc(reinterpret_cast<void**>(&host_), wanted, cudaHostAllocDefault), "pinned memory"));
      host_bytes_ = wanted;
    }
    return ok_status();
  }

  void fill(const MergeReduction& reduction, const Layout& layout) {
    const uint64_t count = reduction.block_count;
    std::memcpy(host_ + layout.numbers, reduction.numbers, count * sizeof(uint64_t));
    for (uint32_t k = 0; k < reduction.input_count; ++k) {
      const uint8_t* address = device_ + layout.values + k * count * reduction.block_values * sizeof(float);
      std::memcpy(host_ + layout.addresses + k * sizeof(address), &address, sizeof(address));
      for (uint64_t b = 0; b < count; ++b) {
        std::memcpy(host_ + layout.payloads + (k * count + b) * layout.upload_bytes,
                    reduction.payloads[b * reduction.input_count + k], layout.upload_bytes);
      }
    }
    std::memcpy(host_ + layout.weights, reduction.weights, reduction.input_count * sizeof(float));
  }

  template <class T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(device_ + offset);
  }

  int launch(const MergeReduction& reduction, const Layout& layout) const {
    const uint64_t block = reduction.block_values, count = reduction.block_count;
    const uint32_t inputs = reduction.input_count;
    float* const values = at<float>(layout.values);
    float* const sum = at<float>(layout.sum);
    const auto* const addresses = at<const float* const>(layout.addresses);
    const auto* const weights = at<const float>(layout.weights);
    int code = merge_decode_cuda({.run = {reduction.upload_format, layout.blocks * block, block},
                                  .payload = device_ + layout.payloads,
                                  .assign = true,
                                  .sum = values},
                                 stream_);
    if (code == 0) code = dots(reduction, layout.blocks, values, 0, at<double>(layout.energies), values);
    if (code == 0) {
      code = merge_factors_cuda({count, inputs, weights, at<double>(layout.energies), at<float>(layout.factors)}, stream_);
    }
    if (code == 0) {
      code = merge_scaled_sum_cuda({count * block, block, addresses, inputs, at<float>(layout.factors), sum}, stream_);
    }
    if (code == 0) code = dots(reduction, layout.blocks, values, count * block, at<double>(layout.overlaps), sum);
    if (code == 0) code = dots(reduction, count, sum, 0, at<double>(layout.totals), sum);
    if (code == 0) {
      code = reduction.trimmed ? trimmed_mean_cuda({addresses, inputs, reduction.trim, count * block, sum}, stream_)
                               : weighted_sum_cuda(addresses, weights, inputs, count * block, sum, stream_);
    }
    if (code == 0) {
      code = merge_encode_cuda({.run = {reduction.result_format, count * block, block},
                                .input = sum,
                                .stochastic = true,
                                .seed = reduction.seed,
                                .numbers = at<uint64_t>(layout.numbers),
                                .payload = device_ + layout.results},
                               stream_);
    }
    return code;
  }

  int dots(const MergeReduction& reduction, uint64_t blocks, const float* a, uint64_t b_values, double* out,
           const float* b) const {
    return merge_dots_cuda({.values = blocks * reduction.block_values,
                            .block_values = reduction.block_values,
                            .a = a,
                            .b = b,
                            .b_values = b_values,
                            .dots = out},
                           stream_);
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;
  uint8_t* device_ = nullptr;
  uint64_t device_bytes_ = 0;
  uint8_t* host_ = nullptr;  // pinned
  uint64_t host_bytes_ = 0;
};

class CudaMergeReducer final : public MergeReducer {
 public:
  explicit CudaMergeReducer(int index) : index_(index) {}
  ~CudaMergeReducer() override { cudaSetDevice(index_); }  // whose memory the lanes give back

  Status open() {
    TESSERA_RETURN_IF_ERROR(status_of(cudaSetDevice(index_), "the device"));
    for (uint32_t i = 0; i < kMergeLanes; ++i) {
      lanes_.push_back(std::make_unique<Lane>());
      TESSERA_RETURN_IF_ERROR(lanes_.back()->open());
      free_.push_back(lanes_.back().get());
    }
    return ok_status();
  }

  bool takes(const MergeReduction& reduction) const override {
    if (reduction.values != reduction.block_values) return false;
    const Layout layout(reduction);
    return layout.device_bytes() <= kMergeLaneBytes && layout.host_bytes() <= kMergeLaneBytes / 4;
  }

  Status reduce(const MergeReduction& reduction) override {
    TESSERA_CHECK(takes(reduction));
    if (reduction.block_count == 0) return ok_status();
    Lane* lane = nullptr;
    {
      std::unique_lock lock(mutex_);
      freed_.wait(lock, [&] { return !free_.empty(); });
      lane = free_.back();
      free_.pop_back();
    }
    Status status = status_of(cudaSetDevice(index_), "the device");
    if (status.ok()) status = lane->reduce(reduction);
    std::lock_guard lock(mutex_);
    free_.push_back(lane);
    freed_.notify_one();
    return status;
  }

 private:
  const int index_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Lane*> free_;  // under mutex_
};

}  // namespace

StatusOr<std::unique_ptr<MergeReducer>> make_cuda_merge_reducer(int index) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();
    return failed_precondition("there is no usable GPU: {}", cudaGetErrorString(code));
  }
  if (index < 0 || index >= count) return failed_precondition("there is no GPU {} among {}", index, count);
  auto reducer = std::make_unique<CudaMergeReducer>(index);
  TESSERA_RETURN_IF_ERROR(reducer->open());
  return reducer;
}

}  // namespace tessera::kernels
