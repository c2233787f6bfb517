#include <tessera/v1/peer.grpc.pb.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "net/convert.h"
#include "net/listener.h"
#include "net/server_call.h"
#include "tessera/net/server.h"

namespace tessera::net {
namespace {

constexpr size_t kMinMemoryBytes = size_t{1} << 30;
constexpr size_t kFramesInMemory = 4;
constexpr size_t kLargestFrameBytes = size_t{1} << 30;  // gRPC counts message sizes in an int

using RawPeer = v1::Peer::WithRawCallbackMethod_SendFrame<
    v1::Peer::WithRawCallbackMethod_Probe<v1::Peer::Service>>;

class PeerService final : public RawPeer {
 public:
  PeerService(std::shared_ptr<ServerCore> core, ports::PeerHandler* handler)
      : core_(std::move(core)), handler_(handler) {}

  void set_run(std::string run_id) {
    core_->verifier().set_run(std::move(run_id));
    in_run_ = true;
  }

  grpc::ServerUnaryReactor* SendFrame(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override {
    if (!in_run_) {
      return refuse_before_run(kSendFrameMethod, context, response);
    }
    return core_->accept(kSendFrameMethod, context, request, response,
                         [&](const ServerCallPtr& call, const ports::Caller& caller) {
                           admit(call, caller, *request);
                         });
  }

  grpc::ServerUnaryReactor* Probe(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    if (!in_run_) return refuse_before_run(kProbeMethod, context, response);
    return core_->accept(kProbeMethod, context, request, response,
                         [&](const ServerCallPtr& call, const ports::Caller& caller) {
                           handler_->on_probe(caller, [call](StatusOr<core::PeerHealth> health) {
                             if (!health.ok()) return call->fail(health.status());
                             v1::ProbeAnswer answer;
                             to_proto(*health, &answer);
                             call->answer(answer);
                           });
                         });
  }

 private:
  // The run is part of what is signed, so nothing can be checked yet.
  grpc::ServerUnaryReactor* refuse_before_run(const char* method,
                                              grpc::CallbackServerContext* context,
                                              grpc::ByteBuffer* response) {
    return core_->accept_unsigned(method, context, response, [](const ServerCallPtr& call) {
      call->fail(failed_precondition("this miner has not joined a run yet; try again later"));
    });
  }
  void admit(const ServerCallPtr& call, const ports::Caller& caller,
             const grpc::ByteBuffer& request) {
    v1::SendFrameRequest message;
    if (Status status = parse(request, &message); !status.ok()) return call->fail(status);
    handler_->on_frame(caller, std::move(*message.mutable_frame()),
                       [call](core::Admission admission) {
                         v1::SendFrameAnswer answer;
                         answer.set_admission(to_proto(admission));
                         call->answer(answer);
                       });
  }

  const std::shared_ptr<ServerCore> core_;
  ports::PeerHandler* const handler_;
  std::atomic<bool> in_run_{false};
};

class GrpcPeerServer final : public PeerServer {
 public:
  GrpcPeerServer(const PeerServerOptions& options, ports::PeerHandler* handler)
      : core_(std::make_shared<ServerCore>(options.key, std::string(), options.auth,
                                           options.max_pending_calls)),
        service_(core_, handler) {}
  ~GrpcPeerServer() override { shutdown(0); }

  Status listen(const PeerServerOptions& options) {
    TESSERA_ASSIGN_OR_RETURN(
        listener_,
        Listener::start(options.listen, {&service_}, options.max_frame_bytes + kFrameEnvelopeBytes,
                        std::max(kMinMemoryBytes, kFramesInMemory * options.max_frame_bytes)));
    return ok_status();
  }
  int port() const override { return listener_->port(); }
  std::string address() const override { return listener_->address(); }
  void set_run(std::string run_id) override { service_.set_run(std::move(run_id)); }
  void shutdown(uint32_t deadline_ms) override {
    core_->close();
    if (listener_ != nullptr) listener_->shutdown(deadline_ms);
  }

 private:
  const std::shared_ptr<ServerCore> core_;
  PeerService service_;
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
  auto server = std::make_unique<GrpcPeerServer>(options, handler);
  TESSERA_RETURN_IF_ERROR(server->listen(options));
  return std::unique_ptr<PeerServer>(std::move(server));
}

}  // namespace tessera::net
