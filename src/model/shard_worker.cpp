#include "model/shard_worker.h"

#include <ATen/Context.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>

#include "model/host_copy.h"

namespace tessera::model {
namespace {

core::RunSpec share_of(const ShardWorkerOptions& options) {
  core::RunSpec spec = options.spec;
  spec.training.microbatch_size = static_cast<uint32_t>(
      batch_share(spec.training.microbatch_size, options.group->rank(), options.group->size()).count);
  return spec;
}

std::unique_ptr<StagePass> make_pass(const core::RunSpec& spec, const ShardWorkerOptions& options,
                                     const at::TensorOptions& compute) {
  if (spec.training.deterministic) at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  FusedPassOptions pass;
  // Sharded gradients leave at once: what is deferred would keep the whole gradient in buckets.
  pass.defer = options.zero_stage < 2;
  pass.loss_share = static_cast<double>(spec.training.microbatch_size) / options.spec.training.microbatch_size;
  return make_fused_pass(spec, options.stage, compute, pass);
}

}  // namespace

BatchShare batch_share(int64_t batch, uint32_t worker, uint32_t workers) {
  const int64_t each = batch / workers, more = batch % workers;
  return {each * worker + std::min<int64_t>(worker, more), each + (worker < more ? 1 : 0)};
}

ShardWorker::ShardWorker(const ShardWorkerOptions& options)
    : spec_(share_of(options)),
      group_(options.group),
      microbatches_per_step_(options.spec.training.microbatches_per_step),
      layout_(spec_, options.stage, options.zero_stage == 0 ? 1 : options.group->size()),
      compute_(at::TensorOptions().device(options.device).dtype(options.device.is_cuda() ? at::kBFloat16 : at::kFloat)),
      pass_(make_pass(spec_, options, compute_)),
      weights_(spec_, options.stage, layout_, options.zero_stage, group_, compute_),
      gradients_(layout_, options.zero_stage, group_, options.device),
      optimizer_(spec_.training, layout_, group_, gradients_, compute_) {}

PassOutput ShardWorker::forward(const at::Tensor& ids, const at::Tensor& boundary) {
  return pass_->forward({weights_.current(), ids, boundary});
}

void ShardWorker::backward(std::unique_ptr<PassState> state, const at::Tensor& outer, bool accumulate,
                           const std::function<void(const at::Tensor&)>& ready) {
  GradientSink sink = accumulate ? GradientSink(&gradients_) : GradientSink();
  if (accumulate) gradients_.begin_microbatch(gradients_.microbatches() + 1 >= microbatches_per_step_);
  ready(pass_->backward(std::move(state), outer, &sink));
  const c10::NoGradGuard no_graph;
  sink.flush();
  if (accumulate) gradients_.finish_microbatch();
}

StatusOr<double> ShardWorker::step(double learning_rate) {
  const c10::NoGradGuard no_graph;
  gradients_.reduce();
  StatusOr<double> norm = optimizer_.step(gradients_, learning_rate, &weights_);
  gradients_.clear();
  return norm;
}

template <class Function>
void ShardWorker::each_own(Function&& function) const {
  for (size_t unit = 0; unit < layout_.units().size(); ++unit) {
    const int64_t filled = layout_.filled_count(unit, own_slice());
    if (filled > 0) function(layout_.units()[unit].offset + own_slice() * layout_.slice_count(unit), filled, unit);
  }
}

template <class Function>
void ShardWorker::each_slice(const at::Tensor& shard, Function&& function) const {
  each_own([&](int64_t offset, int64_t filled, size_t unit) {
    function(offset, shard.narrow(0, layout_.slice_offset(unit), filled), unit);
  });
}

void ShardWorker::read_masters(float* masters) const {
  if (!writes_for_box()) return;
  each_slice(optimizer_.masters(),
             [&](int64_t offset, const at::Tensor& values, size_t) { copy_to_host(values, masters + offset); });
}

std::vector<uint64_t> ShardWorker::older_versions() {
  std::vector<uint64_t> versions;
  for (const auto& weights : weights_.older()) versions.push_back(weights->version);
  return versions;
}

void ShardWorker::read_older(std::vector<core::WeightVersion>* older) {
  if (!writes_for_box()) return;
  const auto held = weights_.older();
  TESSERA_CHECK(held.size() == older->size());
  for (size_t i = 0; i < held.size(); ++i) {
    each_own([&](int64_t offset, int64_t filled, size_t unit) {
      copy_to_host(weights_.slice(*held[i], unit).narrow(0, 0, filled), (*older)[i].values.data() + offset);
    });
  }
}

void ShardWorker::read_state(core::LocalState* state) {
  gradients_.reduce();  // everybody
  if (!writes_for_box()) return;
  read_masters(state->masters.data());
  each_slice(optimizer_.first_moment(), [&](int64_t offset, const at::Tensor& values, size_t unit) {
    copy_to_host(values, state->first_moment.data() + offset);
    if (!state->gradient.empty()) {
      copy_to_host(gradients_.slice(unit).narrow(0, 0, values.numel()), state->gradient.data() + offset);
    }
  });
  each_slice(optimizer_.second_moment(), [&](int64_t offset, const at::Tensor& values, size_t) {
    copy_to_host(values, state->second_moment.data() + offset);
  });
}

void ShardWorker::write_masters(const float* masters) {
  const c10::NoGradGuard no_graph;
  each_slice(optimizer_.masters(),
             [&](int64_t offset, const at::Tensor& values, size_t) { copy_from_host(masters + offset, values); });
  optimizer_.publish(&weights_);
}

void ShardWorker::write_state(const core::LocalState& state) {
  const c10::NoGradGuard no_graph;
  each_slice(optimizer_.first_moment(), [&](int64_t offset, const at::Tensor& values, size_t unit) {
    copy_from_host(state.first_moment.data() + offset, values);
    if (!state.gradient.empty()) {
      copy_from_host(state.gradient.data() + offset, gradients_.slice(unit).narrow(0, 0, values.numel()));
    }
  });
  each_slice(optimizer_.second_moment(), [&](int64_t offset, const at::Tensor& values, size_t) {
    copy_from_host(state.second_moment.data() + offset, values);
  });
  gradients_.restore(state.gradient_microbatches);
  optimizer_.set_steps(state.optimizer_steps);
  write_masters(state.masters.data());
}

ShardWorker::Memory ShardWorker::memory() const {
  Memory memory;
  memory.weights = weights_.version_bytes();
  memory.gradients = gradients_.accumulator_bytes();
  memory.optimizer = static_cast<int64_t>(optimizer_.masters().nbytes() + optimizer_.first_moment().nbytes() +
                                          optimizer_.second_moment().nbytes());
  memory.buckets = gradients_.bucket_bytes() + weights_.slot_bytes();
  return memory;
}

}  // namespace tessera::model
