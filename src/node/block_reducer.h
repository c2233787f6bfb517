// The arithmetic of one block of a merge. One thread.
#pragma once

#include <string>
#include <vector>

#include "tessera/node/merge_reduce.h"

namespace tessera::node {

class BlockReducer {
 public:
  explicit BlockReducer(const ReduceInputs& inputs) : inputs_(inputs), values_(inputs.uploads.size()) {}

  // Block `number` of every upload, as it came, becomes the block of their mean on the result format.
  std::string reduce(const std::vector<std::string>& contents, uint64_t number);
  // Of the block reduced last, one an upload.
  const std::vector<core::UploadMeasure>& measures() const { return measures_; }

 private:
  void measure();
  void measure_moments();
  void take_mean();
  double dot(const std::vector<float>& a, const std::vector<float>& b) const;

  const ReduceInputs& inputs_;
  std::vector<std::vector<float>> values_;
  std::vector<float> mean_;
  std::vector<core::UploadMeasure> measures_;
};

}  // namespace tessera::node
