// One worker of a box of several GPUs: its part of every microbatch, of the gradient, the optimizer and the weights.
// All workers of the box call the same in the same order, each in its own thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "model/box_group.h"
#include "model/sharded_gradients.h"
#include "model/sharded_optimizer.h"
#include "model/sharded_weights.h"
#include "model/stage_pass.h"
#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_state.h"

namespace tessera::model {

struct ShardWorkerOptions {
  core::RunSpec spec;  // of the box: training.microbatch_size is the whole microbatch's
  StageIndex stage = 0;
  uint32_t zero_stage = 0;
  at::Device device = at::kCPU;
  std::shared_ptr<const BoxGroup> group;
};

// The sequences of a microbatch that a worker has.
struct BatchShare {
  int64_t begin = 0;
  int64_t count = 0;
};
BatchShare batch_share(int64_t batch, uint32_t worker, uint32_t workers);

// Used by its thread.
class ShardWorker {
 public:
  // With masters of zero: write_state() or write_masters() comes before everything else.
  explicit ShardWorker(const ShardWorkerOptions& options);

  // As StageCompute has them, for the sequences of this worker's share. The losses of all workers add up to the mean.
  PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary);
  void backward(std::unique_ptr<PassState> state, const at::Tensor& outer, bool accumulate,
                const std::function<void(const at::Tensor&)>& ready);
  StatusOr<double> step(double learning_rate);

  uint64_t weight_version() const { return weights_.current()->version; }
  uint32_t accumulated() const { return gradients_.microbatches(); }
  uint64_t optimizer_steps() const { return optimizer_.steps(); }

  // This worker's values into flat vectors of the whole stage: each value is written by one worker.
  void read_masters(float* masters) const;
  // Into older[i], which has its size, the i-th version that microbatches in flight hold. In the same order for all workers.
  void read_older(std::vector<core::WeightVersion>* older);
  std::vector<uint64_t> older_versions();
  // The vectors have their sizes; `gradient` only if one is accumulated.
  void read_state(core::LocalState* state);
  void write_masters(const float* masters);
  void write_state(const core::LocalState& state);

  // Bytes of live tensors.
  struct Memory {
    int64_t weights = 0, gradients = 0, optimizer = 0;
    int64_t buckets = 0;  // gathered units and gradients under way
  };
  Memory memory() const;
  GatherStall& stall() { return weights_.stall(); }

 private:
  // Calls function(offset in the stage's vector, number of values, unit) for this worker's slice of each unit.
  template <class Function>
  void each_own(Function&& function) const;
  // The same with the tensor of these values, of what this worker keeps of `shard`, in place of their number.
  template <class Function>
  void each_slice(const at::Tensor& shard, Function&& function) const;
  bool writes_for_box() const { return layout_.shards() > 1 || group_->rank() == 0; }
  uint32_t own_slice() const { return layout_.shards() == 1 ? 0 : group_->rank(); }

  const core::RunSpec spec_;  // with this worker's share of the microbatch
  const std::shared_ptr<const BoxGroup> group_;
  const uint32_t microbatches_per_step_;
  const ShardLayout layout_;
  const at::TensorOptions compute_;
  const std::unique_ptr<StagePass> pass_;
  ShardedWeights weights_;
  ShardedGradients gradients_;
  ShardedOptimizer optimizer_;
};

}  // namespace tessera::model
