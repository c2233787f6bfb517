#include "model/box_workers.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "model/failure.h"

namespace tessera::model {

StatusOr<std::unique_ptr<BoxWorkers>> BoxWorkers::create(const core::RunSpec& spec, StageIndex stage, const BoxOptions& box,
                                                         int threads) {
  const size_t size = box.devices.size();
  TESSERA_CHECK(size >= 1 && size == box.groups.size());
  if (box.zero_stage > 3) return invalid_argument("zero_stage: {} is not allowed; it must be 0 to 3", box.zero_stage);
  if (spec.training.microbatch_size < size) {
    return failed_precondition(
        "a microbatch of this run has {} sequences (training.microbatch_size) and this box {} GPUs, which share each one: name "
        "at most {} in 'gpus', and start another miner for the others",
        spec.training.microbatch_size, size, spec.training.microbatch_size);
  }
  if (spec.boundary.kind == core::BoundaryKind::kIota && spec.pipeline.stages > 1) {
    return failed_precondition(
        "boundary.kind iota has layers that only autograd differentiates, on one GPU: name one GPU in 'gpus'");
  }
  std::unique_ptr<BoxWorkers> workers(new BoxWorkers);
  workers->groups_ = box.groups;
  workers->workers_.resize(size);
  for (const std::string& device : box.devices) workers->devices_.emplace_back(device);
  for (size_t i = 0; i < size; ++i) {
    workers->threads_.emplace_back([raw = workers.get(), i, threads] { raw->loop(i, threads); });
  }
  BoxWorkers* raw = workers.get();
  raw->start_task("building the stage", [&](size_t i) -> Status {
    raw->workers_[i] = std::make_unique<ShardWorker>(
        ShardWorkerOptions{spec, stage, box.zero_stage, raw->devices_[i], std::make_shared<BoxGroup>(raw->groups_[i])});
    return ok_status();
  });
  TESSERA_RETURN_IF_ERROR(raw->finish());
  return workers;
}

BoxWorkers::~BoxWorkers() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  threads_.clear();  // joins
}

void BoxWorkers::loop(size_t index, int threads) {
  if (threads > 0) at::set_num_threads(threads);
  const c10::DeviceGuard on_device(devices_[index]);
  uint64_t done = 0;
  while (true) {
    Task task;
    const char* what;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || round_ > done; });
      if (round_ == done) break;
      done = round_;
      task = task_;
      what = what_;
    }
    const Status status = guarded(what, [&] { return task(index); });
    if (!status.ok()) fail(index, status);
    task = nullptr;
    std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
  }
  workers_[index].reset();  // by the thread that used it
}

void BoxWorkers::fail(size_t index, const Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok()) return;
    // What the others are left in is a wait for this one: nothing but a new process mends it.
    const absl::StatusCode code =
        absl::IsResourceExhausted(status) ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal;
    failure_ = error(code, "worker {} ({}) of this box: {}", index, devices_[index].str(), message_of(status));
    changed_.notify_all();
  }
  for (const auto& group : groups_) group->abort();
}

void BoxWorkers::start(const char* what, Work work) {
  start_task(what, [this, work = std::move(work)](size_t index) { return work(*workers_[index], index); });
}

void BoxWorkers::start_task(const char* what, Task task) {
  std::lock_guard lock(mutex_);
  TESSERA_CHECK(running_ == 0);
  if (!failure_.ok()) return;
  task_ = std::move(task);
  what_ = what;
  signals_ = 0;
  running_ = threads_.size();
  ++round_;
  changed_.notify_all();
}

Status BoxWorkers::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return running_ == 0; });
  task_ = nullptr;
  return failure_;
}

Status BoxWorkers::run(const char* what, const Work& work) {
  start(what, work);
  return finish();
}

void BoxWorkers::signal() {
  std::lock_guard lock(mutex_);
  ++signals_;
  changed_.notify_all();
}

Status BoxWorkers::wait_until_signalled() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return signals_ == threads_.size() || !failure_.ok() || running_ == 0; });
  return failure_;
}

}  // namespace tessera::model
