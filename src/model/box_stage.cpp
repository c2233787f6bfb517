#include "model/box_stage.h"

#include <ATen/ops/empty.h>

#include <utility>

#include "model/box_workers.h"
#include "model/failure.h"
#include "tessera/core/stage_layout.h"

namespace tessera::model {
namespace {

class BoxState final : public PassState {
 public:
  explicit BoxState(size_t workers) : parts(workers) {}
  std::vector<std::unique_ptr<PassState>> parts;
};

class BoxStage final : public StageCompute {
 public:
  BoxStage(const core::RunSpec& spec, uint64_t count, std::unique_ptr<BoxWorkers> workers)
      : batch_(spec.training.microbatch_size), count_(count), workers_(std::move(workers)) {}

  PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary) override {
    auto state = std::make_unique<BoxState>(workers_->size());
    std::vector<at::Tensor> wires(workers_->size()), losses(workers_->size());
    throw_if_error(workers_->run("forward", [&](ShardWorker& worker, size_t i) -> Status {
      PassOutput output = worker.forward(part(ids, i), part(boundary, i));
      wires[i] = output.wire;
      losses[i] = output.loss;
      state->parts[i] = std::move(output.state);
      return ok_status();
    }));
    PassOutput output;
    output.wire = joined(wires);
    if (losses[0].defined()) {
      output.loss = losses[0];
      for (size_t i = 1; i < losses.size(); ++i) output.loss = output.loss.add(losses[i].to(output.loss.device()));
    }
    output.state = std::move(state);
    return output;
  }

  void backward(std::unique_ptr<PassState> held, const at::Tensor& outer, bool accumulate,
                const std::function<void(const at::Tensor&)>& ready) override {
    const std::unique_ptr<BoxState> state(static_cast<BoxState*>(held.release()));
    std::vector<at::Tensor> gradients(workers_->size());
    workers_->start("backward", [&](ShardWorker& worker, size_t i) -> Status {
      worker.backward(std::move(state->parts[i]), part(outer, i), accumulate, [&](const at::Tensor& gradient) {
        gradients[i] = gradient;
        workers_->signal();
      });
      return ok_status();
    });
    const Status signalled = workers_->wait_until_signalled();
    // The others are still at their weight gradients; they use what is on this stack.
    const Status sent = signalled.ok() ? guarded("backward", [&]() -> Status {
      ready(joined(gradients));
      return ok_status();
    }) : signalled;
    throw_if_error(workers_->finish());
    throw_if_error(sent);
  }

  StatusOr<double> step(double learning_rate) override {
    std::vector<StatusOr<double>> norms(workers_->size(), StatusOr<double>(0.0));
    TESSERA_RETURN_IF_ERROR(workers_->run("optimizer step", [&](ShardWorker& worker, size_t i) -> Status {
      norms[i] = worker.step(learning_rate);
      // A gradient that is dropped is dropped by all.
      return absl::IsDataLoss(norms[i].status()) ? ok_status() : norms[i].status();
    }));
    return norms[0];
  }

  uint64_t weight_version() const override { return workers_->worker(0).weight_version(); }
  uint32_t accumulated() const override { return workers_->worker(0).accumulated(); }

  std::vector<float> read_masters() override {
    std::vector<float> masters(count_);
    throw_if_error(workers_->run("reading the weights", [&](ShardWorker& worker, size_t) -> Status {
      worker.read_masters(masters.data());
      return ok_status();
    }));
    return masters;
  }
  void write_masters(const std::vector<float>& values) override {
    throw_if_error(workers_->run("setting the weights", [&](ShardWorker& worker, size_t) -> Status {
      worker.write_masters(values.data());
      return ok_status();
    }));
  }
  core::LocalState read_state() override {
    core::LocalState state;
    state.gradient_microbatches = accumulated();
    state.masters.resize(count_);
    state.first_moment.resize(count_);
    state.second_moment.resize(count_);
    if (state.gradient_microbatches > 0) state.gradient.resize(count_);
    throw_if_error(workers_->run("reading the optimizer state", [&](ShardWorker& worker, size_t) -> Status {
      worker.read_state(&state);
      return ok_status();
    }));
    state.optimizer_steps = workers_->worker(0).optimizer_steps();
    return state;
  }
  void write_state(const core::LocalState& state) override {
    throw_if_error(workers_->run("setting the optimizer state", [&](ShardWorker& worker, size_t) -> Status {
      worker.write_state(state);
      return ok_status();
    }));
  }

 private:
  // The sequences of a worker, on its device.
  at::Tensor part(const at::Tensor& whole, size_t worker) const {
    if (!whole.defined()) return {};
    const BatchShare share = batch_share(batch_, static_cast<uint32_t>(worker), static_cast<uint32_t>(workers_->size()));
    return whole.narrow(0, share.begin, share.count).to(workers_->device(worker));
  }
  at::Tensor joined(const std::vector<at::Tensor>& parts) const {
    if (!parts[0].defined()) return {};
    std::vector<int64_t> shape = parts[0].sizes().vec();
    shape[0] = batch_;
    const at::Tensor whole = at::empty(shape, parts[0].options());
    int64_t begin = 0;
    for (const at::Tensor& part : parts) {
      whole.narrow(0, begin, part.size(0)).copy_(part);
      begin += part.size(0);
    }
    return whole;
  }

  const int64_t batch_;
  const uint64_t count_;
  const std::unique_ptr<BoxWorkers> workers_;
};

}  // namespace

StatusOr<std::unique_ptr<StageCompute>> make_box_stage(const core::RunSpec& spec, StageIndex stage, const BoxOptions& box,
                                                       int threads, const std::vector<float>& masters) {
  TESSERA_ASSIGN_OR_RETURN(auto workers, BoxWorkers::create(spec, stage, box, threads));
  auto made = std::make_unique<BoxStage>(spec, core::stage_value_count(spec, stage), std::move(workers));
  made->write_masters(masters);
  return made;
}

}  // namespace tessera::model
