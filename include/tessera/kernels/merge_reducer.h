// The arithmetic of a merge on some blocks of the stage at once: decode every upload, measure it, form the mean, encode that.
// One interface, two devices, the same bytes and the same doubles: the CPU's version, made of the functions in merge_wire.h and
// merge.h, defines them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tessera/base/codec.h"
#include "tessera/base/status.h"

namespace tessera::kernels {

struct MergeReduction {
  Codec upload_format = Codec::kInt8;
  Codec result_format = Codec::kInt8;
  uint64_t block_values = 16384;
  uint64_t values = 16384;  // of each of these blocks: all of block_values, but for the stage's last, which comes alone
  uint32_t input_count = 0;
  const float* weights = nullptr;  // [input_count]
  bool trimmed = false;            // the mean without the `trim` smallest and largest, instead of the weighted sum
  uint32_t trim = 0;
  uint64_t seed = 0;  // of the result's stochastic rounding
  uint64_t block_count = 0;
  const uint64_t* numbers = nullptr;         // [block_count], of the blocks within the stage
  const uint8_t* const* payloads = nullptr;  // [block_count][input_count], each merge_block_bytes(upload_format, values)
  uint8_t* const* results = nullptr;         // [block_count], each merge_block_bytes(result_format, values)
  // A direction is an input's block divided by its length and times its weight (merge_factors_cpu).
  double* energies = nullptr;  // [input_count][block_count], of each input's block with itself
  double* overlaps = nullptr;  // [input_count][block_count], of each input's block with the sum of the directions
  double* totals = nullptr;    // [block_count], of the sum of the directions with itself
};

class MergeReducer {
 public:
  virtual ~MergeReducer() = default;
  // Whether this device takes so large a reduction; others are the CPU's.
  virtual bool takes(const MergeReduction& reduction) const = 0;
  // All outputs are written when it returns. An error is one of the device.
  virtual Status reduce(const MergeReduction& reduction) = 0;
};

// Takes everything and never fails. One thread.
class CpuMergeReducer final : public MergeReducer {
 public:
  bool takes(const MergeReduction&) const override { return true; }
  Status reduce(const MergeReduction& reduction) override;

 private:
  void reduce_block(const MergeReduction& reduction, uint64_t block);

  std::vector<std::vector<float>> inputs_;  // [input_count][values]
  std::vector<float> sum_;                  // of directions, then the mean
};

// On a GPU, with streams of the lowest priority and memory of its own: at most kMergeLanes reductions at a time, further
// callers wait. Each lane grows to what the largest reduction so far takes, at most kMergeLaneBytes on the device and a quarter
// of that pinned on the host; it takes whole blocks that fit. Thread-safe; the device becomes the calling thread's current one.
inline constexpr uint32_t kMergeLanes = 3;
inline constexpr uint64_t kMergeLaneBytes = uint64_t{64} << 20;
// FAILED_PRECONDITION with the reason if the device `index` cannot be used, or the program was built without CUDA. In the
// library tessera_merge_reducer.
StatusOr<std::unique_ptr<MergeReducer>> make_cuda_merge_reducer(int index);

}  // namespace tessera::kernels
