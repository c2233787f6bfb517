// The arithmetic of blocks of a merge, on the CPU or on the device that the inputs name. One thread.
#pragma once

#include <string>
#include <vector>

#include "tessera/kernels/merge_reducer.h"
#include "tessera/node/merge_reduce.h"

namespace tessera::node {

struct ReducedBlock {
  std::string bytes;                          // of the mean, on the result format
  std::vector<core::UploadMeasure> measures;  // one an upload
};

class BlockReducer {
 public:
  explicit BlockReducer(const ReduceInputs& inputs);

  // The blocks `numbers` of the stage; contents[block][upload] as they came, of the right size.
  std::vector<ReducedBlock> reduce(const std::vector<uint64_t>& numbers, const std::vector<std::vector<std::string>>& contents);

 private:
  // `count` blocks of as many values each, from `first`.
  void reduce_run(const std::vector<uint64_t>& numbers, const std::vector<std::vector<std::string>>& contents, size_t first,
                  size_t count, std::vector<ReducedBlock>* reduced);
  void run(const kernels::MergeReduction& reduction);
  uint64_t values_of(uint64_t number) const;

  const ReduceInputs& inputs_;
  std::vector<float> weights_;
  kernels::CpuMergeReducer cpu_;
  kernels::MergeReducer* device_;  // null from its first error on
};

}  // namespace tessera::node
