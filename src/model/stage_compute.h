// A stage as its engine sees it: tensors in and out, on one device, whether one computes it or a box of several.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/stage_pass.h"
#include "tessera/base/status.h"
#include "tessera/core/stage_state.h"

namespace tessera::model {

// Used by one thread. Throws what torch throws, and StatusException.
class StageCompute {
 public:
  virtual ~StageCompute() = default;

  // ids [B, T + 1] int64; boundary [B, T, r], undefined at the head.
  virtual PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary) = 0;
  // Calls `ready` with the input's gradient (undefined at the head) before the weight gradients
  // that it does not need are begun. A failure on the way loses what was accumulated: it may be
  // half added.
  virtual void backward(std::unique_ptr<PassState> state, const at::Tensor& outer, bool accumulate,
                        const std::function<void(const at::Tensor&)>& ready) = 0;
  // One optimizer step with the mean of what was accumulated, at least one microbatch; the answer
  // is the gradient's norm. A gradient that is not finite is dropped, with DATA_LOSS.
  virtual StatusOr<double> step(double learning_rate) = 0;

  virtual uint64_t weight_version() const = 0;
  virtual uint32_t accumulated() const = 0;

  // Flat vectors of the stage in the host's memory, in the order of its layout.
  virtual std::vector<float> read_masters() = 0;
  virtual void write_masters(const std::vector<float>& values) = 0;
  virtual core::LocalState read_state() = 0;
  virtual void write_state(const core::LocalState& state) = 0;
  // As ports::StageEngine::older_weights().
  virtual std::vector<core::WeightVersion> older_weights() = 0;
};

}  // namespace tessera::model
