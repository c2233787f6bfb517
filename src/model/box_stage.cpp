#include "model/box_stage.h"

#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <utility>

#include "model/box_workers.h"
#include "model/failure.h"
#include "tessera/base/large_vector.h"
#include "tessera/core/stage_layout.h"

namespace tessera::model {
namespace {

class BoxState final : public PassState {
 public:
  explicit BoxState(size_t workers) : parts(workers) {}
  std::vector<std::unique_ptr<PassState>> parts;
};

// For copies between the GPUs while the workers are at a pass. On the workers' own streams such a copy may come after one
// worker's wait for a collective and before what another has to add to it: neither would ever go on. One stream a GPU, however
// many workers share it: work is on a GPU's current stream, and it has one.
class SideStreams {
 public:
  explicit SideStreams(const std::vector<at::Device>& devices) {
    if (!devices.front().is_cuda()) return;
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    for (const at::Device& device : devices) {
      workers_.push_back(cuda.getDefaultStream(device));
      arrived_.emplace_back(c10::DeviceType::CUDA);
      const auto same = [&](const c10::Stream& side) { return side.device() == device; };
      if (std::any_of(sides_.begin(), sides_.end(), same)) continue;
      sides_.push_back(cuda.getStreamFromGlobalPool(device, /*isHighPriority=*/true));
      left_.emplace_back(c10::DeviceType::CUDA);
    }
  }

  // By worker i: what its stream has until now comes before the work of run().
  void follow(size_t i) {
    if (!arrived_.empty()) arrived_[i].record(workers_[i]);
  }
  template <class Work>
  void run(Work&& work) {
    if (sides_.empty()) return work();
    for (const c10::Stream& side : sides_) {
      for (const c10::Event& event : arrived_) event.block(side);
    }
    const c10::MultiStreamGuard on_sides(sides_);
    work();
    for (size_t i = 0; i < sides_.size(); ++i) left_[i].record(sides_[i]);
  }
  // When the workers are done: memory that run() read goes back to their streams.
  void join() {
    for (const c10::Event& event : left_) {
      for (const c10::Stream& worker : workers_) event.block(worker);
    }
  }

 private:
  std::vector<c10::Stream> workers_, sides_;  // of each worker; of each GPU
  std::vector<c10::Event> arrived_, left_;
};

class BoxStage final : public StageCompute {
 public:
  BoxStage(const core::RunSpec& spec, uint64_t count, std::unique_ptr<BoxWorkers> workers)
      : batch_(spec.training.microbatch_size), count_(count), workers_(std::move(workers)), sides_(workers_->devices()) {}

  PassOutput forward(const at::Tensor& ids, const at::Tensor& boundary) override {
    auto state = std::make_unique<BoxState>(workers_->size());
    std::vector<at::Tensor> wires(workers_->size()), losses(workers_->size());
    const std::vector<at::Tensor> tokens = parts(ids), inputs = parts(boundary);
    throw_if_error(workers_->run("forward", [&](ShardWorker& worker, size_t i) -> Status {
      PassOutput output = worker.forward(tokens[i], inputs[i]);
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
    const std::vector<at::Tensor> outers = parts(outer);
    std::vector<at::Tensor> gradients(workers_->size());
    workers_->start("backward", [&](ShardWorker& worker, size_t i) -> Status {
      worker.backward(std::move(state->parts[i]), outers[i], accumulate, [&](const at::Tensor& gradient) {
        gradients[i] = gradient;
        sides_.follow(i);
        workers_->signal();
      });
      return ok_status();
    });
    const Status signalled = workers_->wait_until_signalled();
    // The others are still at their weight gradients; they use what is on this stack.
    const Status sent = signalled.ok() ? guarded("backward", [&]() -> Status {
      sides_.run([&] { ready(joined(gradients)); });
      return ok_status();
    }) : signalled;
    throw_if_error(workers_->finish());
    throw_if_error(sent);
    sides_.join();
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
    auto masters = large_vector<float>(count_);
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
    resize_large(&state.masters, count_);
    resize_large(&state.first_moment, count_);
    resize_large(&state.second_moment, count_);
    if (state.gradient_microbatches > 0) resize_large(&state.gradient, count_);
    throw_if_error(workers_->run("reading the optimizer state", [&](ShardWorker& worker, size_t) -> Status {
      worker.read_state(&state);
      return ok_status();
    }));
    state.optimizer_steps = workers_->worker(0).optimizer_steps();
    return state;
  }
  std::vector<core::WeightVersion> older_weights() override {
    std::vector<core::WeightVersion> older;
    for (const uint64_t version : workers_->worker(0).older_versions()) {
      older.push_back({version, large_vector<float>(count_)});
    }
    if (older.empty()) return older;
    throw_if_error(workers_->run("reading older weights", [&](ShardWorker& worker, size_t) -> Status {
      worker.read_older(&older);
      return ok_status();
    }));
    return older;
  }
  void write_state(const core::LocalState& state) override {
    throw_if_error(workers_->run("setting the optimizer state", [&](ShardWorker& worker, size_t) -> Status {
      worker.write_state(state);
      return ok_status();
    }));
  }

 private:
  // The sequences of each worker, on its device. Not while workers are at a pass: see SideStreams.
  std::vector<at::Tensor> parts(const at::Tensor& whole) const {
    std::vector<at::Tensor> parts(workers_->size());
    for (size_t i = 0; whole.defined() && i < parts.size(); ++i) {
      const BatchShare share = batch_share(batch_, static_cast<uint32_t>(i), static_cast<uint32_t>(parts.size()));
      parts[i] = whole.narrow(0, share.begin, share.count).to(workers_->device(i));
    }
    return parts;
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
  SideStreams sides_;
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
