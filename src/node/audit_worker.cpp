#include "audit_worker.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"
#include "tessera/core/payload_name.h"
#include "tessera/node/audit_store.h"

namespace tessera::node {
namespace {

constexpr size_t kMaxItems = 8192;
constexpr size_t kReserved = 8;  // places for commitments
constexpr size_t kMaxQueuedBytes = size_t{256} << 20;
constexpr size_t kBatch = 128;  // payloads in one call, and their bytes
constexpr size_t kBatchBytes = size_t{1} << 20;

}  // namespace

AuditWorker::AuditWorker(ports::BlobLink& blobs, std::function<void(core::MinerEvent)> post, std::chrono::milliseconds linger)
    : blobs_(blobs), post_(std::move(post)), linger_(linger), items_(kMaxItems) {
  thread_ = std::jthread([this] { loop(); });
}

AuditWorker::~AuditWorker() { items_.close(); }

void AuditWorker::keep(const core::BoundaryPayload& payload) {
  const size_t bytes = payload.bytes.size();
  const bool has_place = items_.size() + kReserved < kMaxItems;
  if (has_place && queued_bytes_ + bytes <= kMaxQueuedBytes) {
    queued_bytes_ += bytes;
    if (items_.push(payload) == PushResult::kOk) return;
    queued_bytes_ -= bytes;
  }
  ++dropped_;
  if (has_place && items_.push(core::name_of(payload)) == PushResult::kOk) return;
  // Not even its name is kept. One commitment may be queued before it; the one after that ends its segment.
  unnamed_ = 2;
}

// The state machine has one under way at a time. If the queue is full it is told so by a commitment without a state.
void AuditWorker::store(core::miner_effect::StoreSegment segment) {
  core::SegmentCommit commit = segment.commit;
  if (items_.push(std::move(segment)) == PushResult::kFull) post_(core::miner_event::SegmentStored{std::move(commit)});
}

void AuditWorker::flush() {
  if (waiting_.empty()) return;
  const Status status = put_payloads(blobs_, waiting_);
  if (status.ok()) {
    stored_ += waiting_.size();
  } else {
    spdlog::warn("{} payloads for audits could not be stored: {}", waiting_.size(), message_of(status));
    dropped_ += waiting_.size();
    for (const core::BoundaryPayload& payload : waiting_) names_dropped_.push_back(core::name_of(payload));
  }
  for (const core::BoundaryPayload& payload : waiting_) queued_bytes_ -= payload.bytes.size();
  waiting_.clear();
  waiting_bytes_ = 0;
}

// Few large calls cost less than many small ones. A payload that waits is in no commitment yet.
void AuditWorker::wait(core::BoundaryPayload payload) {
  if (waiting_.empty()) flush_at_ = std::chrono::steady_clock::now() + linger_;
  waiting_bytes_ += payload.bytes.size();
  waiting_.push_back(std::move(payload));
  if (waiting_.size() >= kBatch || waiting_bytes_ >= kBatchBytes) flush();
}

void AuditWorker::loop() {
  name_thread("audit");
  while (true) {
    auto longest = std::chrono::milliseconds(1000);
    if (!waiting_.empty()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(flush_at_ - std::chrono::steady_clock::now());
      longest = std::clamp(left, std::chrono::milliseconds(0), longest);
      if (left.count() <= 0) flush();
    }
    std::optional<Item> item = items_.pop(longest);
    if (items_.closed()) return;
    if (!item) continue;
    if (auto* payload = std::get_if<core::BoundaryPayload>(&*item)) {
      wait(std::move(*payload));
    } else if (const auto* name = std::get_if<Digest>(&*item)) {
      names_dropped_.push_back(*name);
    } else {
      flush();
      const auto& segment = std::get<core::miner_effect::StoreSegment>(*item);
      std::vector<Digest> dropped = std::exchange(names_dropped_, {});
      if (unnamed_ > 0) {
        --unnamed_;
        post_(core::miner_event::SegmentStored{segment.commit});  // without a state
      } else {
        post_(core::miner_event::SegmentStored{store_segment(blobs_, segment, std::move(dropped))});
      }
    }
  }
}

}  // namespace tessera::node
