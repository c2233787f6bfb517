#include <tessera/v1/orchestrator.grpc.pb.h>

#include <utility>

#include "net/blob_service.h"
#include "net/convert.h"
#include "net/field_check.h"
#include "net/listener.h"
#include "net/proto_fields.h"
#include "net/server_call.h"
#include "tessera/base/log.h"
#include "tessera/net/server.h"

namespace tessera::net {
namespace {

// Requests are small; this is for many of them at once, and for blobs.
constexpr size_t kMemoryBytes = size_t{1} << 30;

using RawOrchestrator =
    v1::Orchestrator::WithRawCallbackMethod_Hello<v1::Orchestrator::WithRawCallbackMethod_Register<
        v1::Orchestrator::WithRawCallbackMethod_Sync<v1::Orchestrator::WithRawCallbackMethod_Query<
            v1::Orchestrator::WithRawCallbackMethod_Validate<
                v1::Orchestrator::WithRawCallbackMethod_Command<v1::Orchestrator::Service>>>>>>;

// Answers with `Proto` made by `fill` from the value, or with the error.
template <class Proto, class Value, class Fill>
std::function<void(StatusOr<Value>)> answer_with(ServerCallPtr call, Fill fill) {
  return [call = std::move(call), fill](StatusOr<Value> value) {
    if (!value.ok()) return call->fail(value.status());
    Proto answer;
    fill(*value, &answer);
    call->answer(answer);
  };
}

class OrchestratorService final : public RawOrchestrator {
 public:
  OrchestratorService(std::shared_ptr<ServerCore> core, ports::OrchestratorHandler* handler,
                      std::string run_id, std::string software)
      : core_(std::move(core)),
        handler_(handler),
        run_id_(std::move(run_id)),
        software_(std::move(software)) {}

  grpc::ServerUnaryReactor* Hello(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return core_->accept_unsigned(kHelloMethod, context, response,
                                  [&](const ServerCallPtr& call) { hello(call, *request); });
  }

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return accept<v1::RegisterRequest>(
        kRegisterMethod, context, request, response,
        [this](const ServerCallPtr& call, const ports::Caller& caller,
               const v1::RegisterRequest& message) { register_miner(call, caller, message); });
  }

  grpc::ServerUnaryReactor* Sync(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* response) override {
    return accept<v1::SyncRequest>(
        kSyncMethod, context, request, response,
        [this](const ServerCallPtr& call, const ports::Caller& caller,
               const v1::SyncRequest& message) {
          core::SyncRequest sync;
          if (Status status = from_proto(message, &sync); !status.ok()) return call->fail(status);
          handler_->on_sync(caller, std::move(sync),
                            answer_with<v1::SyncAnswer, core::SyncAnswer>(
                                call, [](const core::SyncAnswer& value, v1::SyncAnswer* answer) {
                                  to_proto(value, answer);
                                }));
        });
  }

  grpc::ServerUnaryReactor* Query(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return accept<v1::QueryRequest>(
        kQueryMethod, context, request, response,
        [this](const ServerCallPtr& call, const ports::Caller& caller,
               const v1::QueryRequest& message) {
          std::string topic, argument;
          FieldCheck check;
          check.text("topic", message.topic(), kMaxShortText, &topic);
          check.text("argument", message.argument(), kMaxArgument, &argument);
          if (!check.ok()) return call->fail(check.status());
          handler_->on_query(caller, std::move(topic), std::move(argument),
                             json_answer<v1::QueryAnswer>(call));
        });
  }

  grpc::ServerUnaryReactor* Validate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return accept<v1::ValidateRequest>(
        kValidateMethod, context, request, response,
        [this](const ServerCallPtr& call, const ports::Caller& caller,
               const v1::ValidateRequest& message) {
          core::ValidatorReport report;
          FieldCheck check;
          check.require("report", flaw_of(message.report(), &report));
          if (!check.ok()) return call->fail(check.status());
          handler_->on_validate(
              caller, std::move(report),
              answer_with<v1::ValidateAnswer, core::ValidatorOrders>(
                  call, [](const core::ValidatorOrders& value, v1::ValidateAnswer* answer) {
                    answer->set_orders(encode(value));
                  }));
        });
  }

  grpc::ServerUnaryReactor* Command(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override {
    return accept<v1::CommandRequest>(
        kCommandMethod, context, request, response,
        [this](const ServerCallPtr& call, const ports::Caller& caller,
               const v1::CommandRequest& message) {
          std::string command, argument;
          FieldCheck check;
          check.text("command", message.command(), kMaxShortText, &command);
          check.text("argument", message.argument(), kMaxArgument, &argument);
          if (!check.ok()) return call->fail(check.status());
          handler_->on_command(caller, std::move(command), std::move(argument),
                               json_answer<v1::CommandAnswer>(call));
        });
  }

 private:
  template <class Message, class Serve>
  grpc::ServerUnaryReactor* accept(const char* method, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                   const Serve& serve) {
    return core_->accept(
        method, context, request, response,
        [&](const ServerCallPtr& call, const ports::Caller& caller) {
          if (handler_ == nullptr) {
            return call->fail(
                error(absl::StatusCode::kUnimplemented,
                      "this server only keeps blobs; use the address of the orchestrator"));
          }
          Message message;
          if (Status status = parse(*request, &message); !status.ok()) return call->fail(status);
          serve(call, caller, message);
        });
  }

  template <class Proto>
  static std::function<void(StatusOr<std::string>)> json_answer(const ServerCallPtr& call) {
    return answer_with<Proto, std::string>(
        call, [](const std::string& json, Proto* answer) { answer->set_json(json); });
  }

  std::string self() const { return fmt::format("the orchestrator (software {})", software_); }

  void hello(const ServerCallPtr& call, const grpc::ByteBuffer& request) {
    v1::HelloRequest message;
    if (Status status = parse(request, &message); !status.ok()) return call->fail(status);
    if (message.nonce().size() != kHelloNonceBytes) {
      return call->fail(invalid_argument("nonce: {} bytes, expected {}", message.nonce().size(),
                                         kHelloNonceBytes));
    }
    v1::HelloAnswer answer;
    answer.set_protocol_version(core::kProtocolVersion);
    answer.set_run_id(run_id_);
    answer.set_node(bytes_of(core_->key().id()));
    answer.set_software(software_);
    const Signature signature = core_->key().sign(
        hello_bytes(message.nonce(), core::kProtocolVersion, run_id_, core_->key().id()));
    answer.set_signature(signature.data(), signature.size());
    call->answer(answer);
  }

  void register_miner(const ServerCallPtr& call, const ports::Caller& caller,
                      const v1::RegisterRequest& message) {
    if (message.protocol_version() != core::kProtocolVersion) {
      core::RegisterAnswer refusal;
      refusal.refusal = core::RegisterRefusal::kProtocolVersion;
      refusal.message =
          version_mismatch(self(), core::kProtocolVersion,
                           fmt::format("the miner (software {})",
                                       message.registration().software().substr(0, kMaxShortText)),
                           message.protocol_version());
      v1::RegisterAnswer answer;
      to_proto(refusal, &answer);
      return call->answer(answer);
    }
    core::Registration registration;
    FieldCheck check;
    check.present("registration", message.has_registration());
    check.nested("registration", message.registration(), &registration);
    if (!check.ok()) return call->fail(check.status());
    if (registration.node != caller.node) {
      return call->fail(invalid_argument(
          "registration.node: {}, but node {} signed the request; a miner registers itself only",
          registration.node.brief(), caller.node.brief()));
    }
    handler_->on_register(caller, std::move(registration),
                          answer_with<v1::RegisterAnswer, core::RegisterAnswer>(
                              call, [](const core::RegisterAnswer& value,
                                       v1::RegisterAnswer* answer) { to_proto(value, answer); }));
  }

  const std::shared_ptr<ServerCore> core_;
  ports::OrchestratorHandler* const handler_;
  const std::string run_id_;
  const std::string software_;
};

class GrpcOrchestratorServer final : public OrchestratorServer {
 public:
  GrpcOrchestratorServer(const OrchestratorServerOptions& options,
                         ports::OrchestratorHandler* handler, BlobBackend* blobs)
      : core_(std::make_shared<ServerCore>(options.key, options.run_id, options.auth,
                                           options.max_pending_calls)),
        orchestrator_(core_, handler, options.run_id, options.software),
        blobs_(core_, blobs, options.blob_threads, options.max_queued_blob_calls) {}
  ~GrpcOrchestratorServer() override { shutdown(0); }

  Status listen(const std::string& address) {
    TESSERA_ASSIGN_OR_RETURN(listener_, Listener::start(address, {&orchestrator_, &blobs_},
                                                        kMaxControlBytes, kMemoryBytes));
    return ok_status();
  }
  int port() const override { return listener_->port(); }
  std::string address() const override { return listener_->address(); }
  void shutdown(uint32_t deadline_ms) override {
    core_->close();
    if (listener_ != nullptr) listener_->shutdown(deadline_ms);
    blobs_.stop();
  }

 private:
  const std::shared_ptr<ServerCore> core_;
  OrchestratorService orchestrator_;
  BlobService blobs_;
  std::unique_ptr<Listener> listener_;  // destroyed before the services it uses
};

}  // namespace

StatusOr<std::unique_ptr<OrchestratorServer>> OrchestratorServer::start(
    OrchestratorServerOptions options, ports::OrchestratorHandler* handler, BlobBackend* blobs) {
  if (options.run_id.size() > kMaxRunIdBytes) {
    return invalid_argument("the run id has {} bytes, at most {} are allowed",
                            options.run_id.size(), kMaxRunIdBytes);
  }
  if (options.blob_threads == 0 || options.max_queued_blob_calls == 0 ||
      options.max_pending_calls == 0) {
    return invalid_argument("blob threads, queued blob calls and pending calls must be at least 1");
  }
  auto server = std::make_unique<GrpcOrchestratorServer>(options, handler, blobs);
  TESSERA_RETURN_IF_ERROR(server->listen(options.listen));
  return std::unique_ptr<OrchestratorServer>(std::move(server));
}

}  // namespace tessera::net
