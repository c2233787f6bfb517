#include <tessera/v1/blobs.pb.h>

#include <algorithm>
#include <future>
#include <mutex>
#include <utility>

#include "net/blob_bodies.h"
#include "net/client_channel.h"
#include "net/proto_fields.h"
#include "tessera/net/links.h"

namespace tessera::net {
namespace {

// Of one call: a chunk of 1 MiB over 1 Mbit/s takes 8 s.
constexpr uint32_t kCallTimeoutMs = 10000;

class DonorLink final : public ports::BlobLink {
 public:
  DonorLink(std::shared_ptr<RequestSigner> signer, std::string run_id, const core::Peer& donor)
      : auth_{std::move(signer), donor.node, std::move(run_id), std::string()},
        channel_("donor", donor.address, kMaxControlBytes) {}

  StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override {
    return error(absl::StatusCode::kUnimplemented, "{}: a donor takes nothing", channel_.name());
  }

  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    std::vector<std::string> contents;
    while (contents.size() < digests.size()) {
      TESSERA_RETURN_IF_ERROR(get_some(digests, &contents));
    }
    return contents;
  }

 private:
  // At least one more.
  Status get_some(const std::vector<Digest>& digests, std::vector<std::string>* contents) {
    v1::GetBlobsRequest request;
    const size_t count = std::min(kMaxBlobsPerCall, digests.size() - contents->size());
    for (size_t i = 0; i < count; ++i) request.add_digests(bytes_of(digests[contents->size() + i]));
    v1::GetBlobsAnswer answer;  // read where its signature is checked
    CallAuth auth = auth_;
    auth.digests.answer = [&answer](const grpc::ByteBuffer& buffer) { return read_blobs_answer(buffer, &answer); };
    std::promise<CallResult> promise;
    channel_.call(kGetBlobsMethod, buffer_of(serialize(request)), std::move(auth), kCallTimeoutMs,
                  [&promise](CallResult result) { promise.set_value(std::move(result)); });
    const CallResult result = promise.get_future().get();
    if (!result.answer.ok()) return result.answer.status();
    if (answer.blobs_size() != static_cast<int>(count) || answer.blobs(0).state() == v1::BLOB_STATE_DEFERRED) {
      return data_loss("{}: its answer is not one to the question", channel_.name());
    }
    for (v1::BlobResult& blob : *answer.mutable_blobs()) {
      if (blob.state() == v1::BLOB_STATE_DEFERRED) return ok_status();
      const Digest& name = digests[contents->size()];
      if (blob.state() != v1::BLOB_STATE_FOUND) return not_found("{}: it does not hold {}", channel_.name(), name.brief());
      if (digest_of(blob.content()) != name) {
        return data_loss("{}: what it gave as {} has another digest", channel_.name(), name.brief());
      }
      contents->push_back(std::move(*blob.mutable_content()));
    }
    return ok_status();
  }

  const CallAuth auth_;
  ClientChannel channel_;
};

class DonorClient final : public GrpcDonorLinks {
 public:
  explicit DonorClient(std::shared_ptr<RequestSigner> signer) : signer_(std::move(signer)) {}

  void set_run(std::string run_id) override {
    std::lock_guard lock(mutex_);
    run_id_ = std::move(run_id);
  }
  std::unique_ptr<ports::BlobLink> connect(const core::Peer& donor) override {
    std::lock_guard lock(mutex_);
    return std::make_unique<DonorLink>(signer_, run_id_, donor);
  }

 private:
  const std::shared_ptr<RequestSigner> signer_;
  std::mutex mutex_;
  std::string run_id_;
};

}  // namespace

std::unique_ptr<GrpcDonorLinks> GrpcDonorLinks::create(std::shared_ptr<RequestSigner> signer) {
  TESSERA_CHECK(signer != nullptr);
  return std::make_unique<DonorClient>(std::move(signer));
}

}  // namespace tessera::net
