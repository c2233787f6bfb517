#include <tessera/v1/peer.grpc.pb.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "net/blob_service.h"
#include "net/convert.h"
#include "net/inbound_streams.h"
#include "net/listener.h"
#include "net/server_call.h"
#include "tessera/net/server.h"

namespace tessera::net {
namespace {

constexpr size_t kMinFrameMemoryBytes = size_t{1} << 30;
constexpr size_t kFramesInMemory = 4;
constexpr size_t kTransportMemoryBytes = size_t{1} << 30;
constexpr size_t kLargestFrameBytes = size_t{1} << 30;

using RawPeer =
    v1::Peer::WithRawCallbackMethod_Exchange<v1::Peer::WithRawCallbackMethod_Probe<v1::Peer::Service>>;

Status not_in_a_run() {
  return failed_precondition("this miner has not joined a run yet; try again later");
}

class PeerService final : public RawPeer {
 public:
  PeerService(std::shared_ptr<ServerCore> core, std::shared_ptr<InboundStreams> streams,
              ports::PeerHandler* handler)
      : core_(std::move(core)), streams_(std::move(streams)), handler_(handler) {}

  void set_run(std::string run_id) {
    if (in_run_ && run_id == run_id_) return;
    run_id_ = run_id;
    core_->verifier().set_run(std::move(run_id));
    streams_->end_all(failed_precondition("this miner is in another run now"));
    in_run_ = true;
  }

  PeerReactor* Exchange(grpc::CallbackServerContext* context) override {
    // The run is part of what is signed, so without one nothing can be checked.
    if (!in_run_) return refuse_stream(not_in_a_run());
    const uint64_t generation = streams_->generation();
    auto opening = accept_opening(core_->verifier(), core_->key(), context);
    if (!opening.ok()) return refuse_stream(opening.status());
    return streams_->open(*std::move(opening), generation);
  }

  grpc::ServerUnaryReactor* Probe(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    if (!in_run_) {
      return core_->accept_unsigned(kProbeMethod, context, response, [](const ServerCallPtr& call) {
        call->fail(not_in_a_run());
      });
    }
    return core_->accept(kProbeMethod, context, request, response,
                         [&](const ServerCallPtr& call, const ports::Caller& caller) {
                           probe(call, caller, *request);
                         });
  }

 private:
  void probe(const ServerCallPtr& call, const ports::Caller& caller,
             const grpc::ByteBuffer& request) {
    v1::ProbeRequest message;
    if (Status status = parse(request, &message); !status.ok()) return call->fail(status);
    handler_->on_probe(caller, [call](StatusOr<core::PeerHealth> health) {
      if (!health.ok()) return call->fail(health.status());
      v1::ProbeAnswer answer;
      to_proto(*health, &answer);
      call->answer(answer);
    });
  }

  const std::shared_ptr<ServerCore> core_;
  const std::shared_ptr<InboundStreams> streams_;
  ports::PeerHandler* const handler_;
  std::string run_id_;  // for set_run() alone
  std::atomic<bool> in_run_{false};
};

// What a miner gives away is read like blobs, by anyone with a key.
class Donations final : public BlobBackend {
 public:
  explicit Donations(ports::PeerHandler* handler) : handler_(handler) {}
  Status admit(const ports::Caller&, bool write) override {
    if (!write) return ok_status();
    return error(absl::StatusCode::kPermissionDenied, "a miner takes no blobs; use the address of a blob server");
  }
  Status put(const ports::Caller&, const Digest&, std::string) override {
    return error(absl::StatusCode::kPermissionDenied, "a miner takes no blobs");
  }
  StatusOr<std::string> get(const Digest& digest) override { return handler_->donate(digest); }
  bool has(const Digest& digest) override { return handler_->donate(digest).ok(); }

 private:
  ports::PeerHandler* const handler_;
};

class GrpcPeerServer final : public PeerServer {
 public:
  GrpcPeerServer(const PeerServerOptions& options, ports::PeerHandler* handler)
      : core_(std::make_shared<ServerCore>(options.key, std::string(), options.auth,
                                           options.max_pending_calls)),
        streams_(std::make_shared<InboundStreams>(
            InboundStreams::Limits{
                .max_frame_bytes = options.max_frame_bytes,
                .frame_memory_bytes =
                    std::max(kMinFrameMemoryBytes, kFramesInMemory * options.max_frame_bytes),
                .max_streams = options.max_streams,
                .handler_threads = options.handler_threads},
            handler)),
        service_(core_, streams_, handler),
        donations_(handler),
        donor_service_(core_, &donations_, options.donor_threads, options.max_queued_donations) {}
  ~GrpcPeerServer() override { shutdown(0); }

  Status listen(const PeerServerOptions& options) {
    // An answer with donations is as large as a blob server's.
    TESSERA_ASSIGN_OR_RETURN(listener_, Listener::start(options.listen, {&service_, &donor_service_},
                                                        kMaxControlBytes, kTransportMemoryBytes));
    return ok_status();
  }
  int port() const override { return listener_->port(); }
  std::string address() const override { return listener_->address(); }
  void set_run(std::string run_id) override { service_.set_run(std::move(run_id)); }
  void shutdown(uint32_t deadline_ms) override {
    core_->close();
    streams_->close();
    if (listener_ != nullptr) listener_->shutdown(deadline_ms);
    donor_service_.stop();
  }

 private:
  const std::shared_ptr<ServerCore> core_;
  const std::shared_ptr<InboundStreams> streams_;
  PeerService service_;
  Donations donations_;
  BlobService donor_service_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace

StatusOr<std::unique_ptr<PeerServer>> PeerServer::start(PeerServerOptions options,
                                                        ports::PeerHandler* handler) {
  TESSERA_CHECK(handler != nullptr);
  if (options.max_frame_bytes == 0 || options.max_frame_bytes > kLargestFrameBytes) {
    return invalid_argument("max_frame_bytes is {}; choose 1 to {}", options.max_frame_bytes,
                            kLargestFrameBytes);
  }
  if (options.max_streams == 0 || options.handler_threads == 0 || options.max_pending_calls == 0) {
    return invalid_argument("streams, handler threads and pending calls must be at least 1");
  }
  auto server = std::make_unique<GrpcPeerServer>(options, handler);
  TESSERA_RETURN_IF_ERROR(server->listen(options));
  return std::unique_ptr<PeerServer>(std::move(server));
}

}  // namespace tessera::net
