#include "background_worker.h"

#include <chrono>

#include "tessera/base/thread_name.h"

namespace tessera::node {

BackgroundWorker::BackgroundWorker(const core::RunSpec& spec, ports::BlobLink& blobs, std::string directory,
                                   std::string run_id, std::function<void(core::MinerEvent)> post, Donations donations,
                                   kernels::MergeReducer* reducer)
    : work_(spec, blobs, std::move(directory), std::move(run_id), std::move(post), /*overlap=*/true, donations, reducer) {
  thread_ = std::jthread([this] { loop(); });
}

BackgroundWorker::~BackgroundWorker() { jobs_.close(); }

void BackgroundWorker::run(core::BackgroundJob job) {
  work_.announce(job);
  TESSERA_CHECK(jobs_.push(std::move(job)) != PushResult::kFull);
}

void BackgroundWorker::loop() {
  name_thread("background");
  while (true) {
    std::optional<core::BackgroundJob> job = jobs_.pop(std::chrono::milliseconds(1000));
    if (!job) {
      if (jobs_.closed()) return;
      continue;
    }
    const bool is_kept = std::holds_alternative<core::miner_effect::UploadLocalState>(*job) ||
                         std::holds_alternative<core::miner_effect::SaveLocalState>(*job);
    if (jobs_.closed() && !is_kept) continue;
    work_.run(*job);
  }
}

}  // namespace tessera::node
