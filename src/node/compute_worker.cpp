#include "compute_worker.h"

#include <chrono>

#include "tessera/base/thread_name.h"

namespace tessera::node {
namespace {

double steady_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

ComputeWorker::ComputeWorker(ComputeJobs::MakeEngine make_engine, std::function<void(core::MinerEvent)> post,
                             std::function<void(Status)> fatal, ComputeJobs::KeepPayload keep)
    : work_(std::move(make_engine), std::move(post), std::move(fatal), steady_ms, std::move(keep)) {
  thread_ = std::jthread([this] { loop(); });
}

ComputeWorker::~ComputeWorker() { jobs_.close(); }

void ComputeWorker::run(core::ComputeJob job) {
  TESSERA_CHECK(jobs_.push(std::move(job)) != PushResult::kFull);
}

void ComputeWorker::loop() {
  name_thread("compute");
  while (true) {
    std::optional<core::ComputeJob> job = jobs_.pop(std::chrono::milliseconds(1000));
    if (!job) {
      if (jobs_.closed()) return;
      continue;
    }
    work_.run(*job);
  }
}

}  // namespace tessera::node
