#include "net/blob_service.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "net/blob_bodies.h"
#include "net/proto_fields.h"
#include "tessera/base/clock.h"
#include "tessera/base/log.h"

namespace tessera::net {
namespace {

constexpr TimeMs kIdleWaitMs = 1000;
constexpr uint32_t kLongestWaitMs = 1000;  // of a call for what is not there; a caller may ask again
constexpr size_t kMaxParked = 1024;

template <class Repeated>
StatusOr<std::vector<Digest>> checked_digests(const Repeated& digests) {
  if (digests.size() > static_cast<int>(kMaxBlobsPerCall)) {
    return invalid_argument("digests: {} entries, at most {} are allowed", digests.size(),
                            kMaxBlobsPerCall);
  }
  std::vector<Digest> result(digests.size());
  for (int i = 0; i < digests.size(); ++i) {
    if (!Digest::from(digests[i], &result[i])) {
      return invalid_argument("digests[{}]: {} bytes, expected 32", i, digests[i].size());
    }
  }
  return result;
}

Status check_contents(const v1::PutBlobsRequest& request) {
  if (request.contents_size() > static_cast<int>(kMaxBlobsPerCall)) {
    return invalid_argument("contents: {} entries, at most {} are allowed", request.contents_size(),
                            kMaxBlobsPerCall);
  }
  for (int i = 0; i < request.contents_size(); ++i) {
    if (request.contents(i).size() > kMaxBlobBytes) {
      return invalid_argument("contents[{}]: {} bytes, at most {} are allowed", i,
                              request.contents(i).size(), kMaxBlobBytes);
    }
  }
  return ok_status();
}

}  // namespace

BlobService::BlobService(std::shared_ptr<ServerCore> core, BlobBackend* backend, size_t threads,
                         size_t max_queued)
    : core_(std::move(core)), backend_(backend), jobs_(max_queued), parked_(kMaxParked) {
  for (size_t i = 0; backend_ != nullptr && i < threads; ++i) {
    threads_.emplace_back([this] { serve(); });
  }
}

BlobService::~BlobService() { stop(); }

void BlobService::stop() {
  stopping_ = true;
  jobs_.close();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void BlobService::serve() {
  while (true) {
    const TimeMs now = monotonic_now_ms();
    hurry(parked_.expired(now));
    // Who parks a call looks again itself, so the next to expire is always somebody's.
    const TimeMs wait = std::clamp<TimeMs>(parked_.next_expiry().value_or(now + kIdleWaitMs) - now, 0, kIdleWaitMs);
    std::optional<Job> job = jobs_.pop(std::chrono::milliseconds(wait));
    if (!job) {
      if (stopping_) return;
      continue;
    }
    if (!job->call->answered()) (this->*job->work)(*job);
  }
}

grpc::ServerUnaryReactor* BlobService::enqueue(const char* method,
                                               grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response, bool write,
                                               void (BlobService::*work)(const Job&)) {
  return core_->accept(
      method, context, request, response,
      [&](const ServerCallPtr& call, const ports::Caller& caller) {
        if (backend_ == nullptr) {
          return call->fail(error(absl::StatusCode::kUnimplemented,
                                  "this server keeps no blobs; use the address of a blob server"));
        }
        if (Status refusal = backend_->admit(caller, write); !refusal.ok()) {
          return call->fail(refusal);
        }
        switch (jobs_.push({call, caller, *request, work})) {
          case PushResult::kOk:
            return;
          case PushResult::kFull:
            return call->fail(error(absl::StatusCode::kResourceExhausted,
                                    "the blob server's queue is full; try again later"));
          case PushResult::kClosed:
            return call->fail(unavailable("this server is shutting down; try again later"));
        }
      },
      write ? ServerCore::Signed::kContents : ServerCore::Signed::kBody);
}

grpc::ServerUnaryReactor* BlobService::HasBlobs(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return enqueue(kHasBlobsMethod, context, request, response, false, &BlobService::has);
}
grpc::ServerUnaryReactor* BlobService::PutBlobs(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return enqueue(kPutBlobsMethod, context, request, response, true, &BlobService::put);
}
grpc::ServerUnaryReactor* BlobService::GetBlobs(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return enqueue(kGetBlobsMethod, context, request, response, false, &BlobService::get);
}
grpc::ServerUnaryReactor* BlobService::ReadLedger(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return enqueue(kReadLedgerMethod, context, request, response, false, &BlobService::read_ledger);
}

void BlobService::has(const Job& job) {
  v1::HasBlobsRequest request;
  if (Status status = parse(job.request, &request); !status.ok()) return job.call->fail(status);
  const auto digests = checked_digests(request.digests());
  if (!digests.ok()) return job.call->fail(digests.status());
  v1::HasBlobsAnswer answer;
  for (const Digest& digest : *digests) answer.add_present(backend_->has(digest));
  job.call->answer(answer);
}

void BlobService::put(const Job& job) {
  v1::PutBlobsRequest request;
  Status status = parse(job.request, &request);
  if (status.ok()) status = check_contents(request);
  if (!status.ok()) return job.call->fail(status);
  std::vector<Digest> names;
  for (const std::string& content : request.contents()) names.push_back(digest_of(content));
  if (contents_digest(names) != job.call->signed_digest()) {
    return job.call->fail(Status(absl::StatusCode::kUnauthenticated,
                                 "the blobs are not those that were signed: they were changed on the way"));
  }
  v1::PutBlobsAnswer answer;
  for (size_t i = 0; i < names.size(); ++i) {
    status = backend_->put(job.caller, names[i], std::move(*request.mutable_contents(static_cast<int>(i))));
    if (!status.ok()) return job.call->fail(status);
    hurry(parked_.arrived(names[i]));
    answer.add_digests(bytes_of(names[i]));
  }
  job.call->answer(answer);
}

void BlobService::hurry(std::vector<Job> jobs) {
  for (Job& job : jobs) {
    const ServerCallPtr call = job.call;
    if (jobs_.push(std::move(job)) == PushResult::kFull) {
      call->fail(error(absl::StatusCode::kResourceExhausted, "the blob server's queue is full; try again later"));
    }
  }
}

bool BlobService::waits(const Job& job, const std::vector<Digest>& digests, uint32_t wait_ms) {
  std::vector<Digest> missing;
  for (const Digest& digest : digests) {
    if (!backend_->has(digest)) missing.push_back(digest);
  }
  if (missing.empty()) return false;
  Job parked = job;
  parked.waited = true;
  if (!parked_.park(std::move(parked), missing, monotonic_now_ms() + std::min(wait_ms, kLongestWaitMs))) return false;
  // What came in between told nobody.
  for (const Digest& digest : missing) {
    if (backend_->has(digest)) hurry(parked_.arrived(digest));
  }
  return true;
}

void BlobService::get(const Job& job) {
  v1::GetBlobsRequest request;
  if (Status status = parse(job.request, &request); !status.ok()) return job.call->fail(status);
  const auto digests = checked_digests(request.digests());
  if (!digests.ok()) return job.call->fail(digests.status());
  if (!job.waited && request.wait_ms() > 0 && waits(job, *digests, request.wait_ms())) return;
  BlobsAnswerBody answer;
  size_t content_bytes = 0;
  bool full = false;
  for (const Digest& digest : *digests) {
    if (full) {
      answer.add(v1::BLOB_STATE_DEFERRED);
      continue;
    }
    StatusOr<std::string> content = backend_->get(digest);
    if (!content.ok()) {
      const bool missing = absl::IsNotFound(content.status());
      answer.add(missing ? v1::BLOB_STATE_MISSING : v1::BLOB_STATE_FAILED);
      // The reason names files of this machine: it is for its own operator.
      if (!missing) {
        spdlog::warn("blob {} can't be read: {}", digest.hex(), message_of(content.status()));
      }
    } else if (content_bytes > 0 && content_bytes + content->size() > kMaxBlobCallBytes) {
      answer.add(v1::BLOB_STATE_DEFERRED);
      full = true;
    } else {
      content_bytes += content->size();
      answer.add_found(*std::move(content));
    }
  }
  const Digest states = states_digest(answer.states());
  job.call->answer(answer.take(), states);
}

void BlobService::read_ledger(const Job& job) {
  v1::ReadLedgerRequest request;
  if (Status status = parse(job.request, &request); !status.ok()) return job.call->fail(status);
  StatusOr<ports::LedgerPage> page = backend_->read_ledger(request.after(), request.offset());
  if (absl::IsDataLoss(page.status())) {
    spdlog::error("the ledger can't be read: {}", message_of(page.status()));
    return job.call->fail(data_loss("the ledger can't be read; the server's log says why"));
  }
  if (!page.ok()) return job.call->fail(page.status());
  v1::ReadLedgerAnswer answer;
  answer.set_chain_before(bytes_of(page->chain_before));
  answer.set_last_sequence(page->last_sequence);
  answer.set_body_bytes(page->body_bytes);
  for (ports::JournalRecord& record : page->records) {
    v1::LedgerEntry* entry = answer.add_entries();
    entry->set_sequence(record.sequence);
    entry->set_unix_ms(record.unix_ms);
    entry->set_kind(std::move(record.kind));
    entry->set_body(std::move(record.body));
  }
  job.call->answer(answer);
}

}  // namespace tessera::net
