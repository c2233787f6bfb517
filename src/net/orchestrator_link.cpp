#include <tessera/v1/blobs.pb.h>
#include <tessera/v1/orchestrator.pb.h>

#include <future>
#include <mutex>
#include <utility>

#include "net/convert.h"
#include "net/orchestrator_endpoint.h"
#include "tessera/net/links.h"

namespace tessera::net {
namespace {

class OrchestratorClient final : public GrpcOrchestratorLink {
 public:
  explicit OrchestratorClient(OrchestratorLinkOptions options)
      : timeout_ms_(options.timeout_ms),
        endpoint_("orchestrator", options.orchestrator, std::move(options.signer),
                  std::move(options.software), options.expected_orchestrator) {}

  void register_miner(core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override {
    endpoint_.hello(timeout_ms_, [this, registration = std::move(registration),
                                  done = std::move(done)](StatusOr<HelloInfo> info) {
      if (info.ok()) return register_at(*info, registration, done);
      if (!is_version_refusal(info.status())) return done(info.status());
      core::RegisterAnswer refusal;
      refusal.refusal = core::RegisterRefusal::kProtocolVersion;
      refusal.message = message_of(info.status());
      done(std::move(refusal));
    });
  }

  void sync(core::SyncRequest request,
            std::function<void(StatusOr<core::SyncAnswer>)> done) override {
    std::optional<Registered> registered;
    {
      std::lock_guard lock(mutex_);
      registered = registered_;
    }
    if (!registered) {
      return endpoint_.fail_soon(
          failed_precondition("not registered; register first"),
          [done = std::move(done)](StatusOr<grpc::ByteBuffer> answer) { done(answer.status()); });
    }
    v1::SyncRequest message;
    to_proto(request, &message);
    endpoint_.call(kSyncMethod, buffer_of(serialize(message)), registered->node, registered->run_id,
                   registered->session, timeout_ms_,
                   [name = endpoint_.name(),
                    done = std::move(done)](const StatusOr<grpc::ByteBuffer>& answer) {
                     done(converted<v1::SyncAnswer, core::SyncAnswer>(name, answer));
                   });
  }

  StatusOr<HelloInfo> hello() override { return endpoint_.hello_and_wait(timeout_ms_); }

  StatusOr<std::string> query(const std::string& topic, const std::string& argument) override {
    v1::QueryRequest request;
    request.set_topic(topic);
    request.set_argument(argument);
    return ask<v1::QueryAnswer>(kQueryMethod, request);
  }

  StatusOr<core::ValidatorOrders> report(const core::ValidatorReport& report) override {
    v1::ValidateRequest request;
    request.set_report(encode(report));
    TESSERA_ASSIGN_OR_RETURN(const v1::ValidateAnswer answer, call<v1::ValidateAnswer>(kValidateMethod, request));
    core::ValidatorOrders orders;
    if (!decode(answer.orders(), &orders)) {
      return invalid_argument("{}: its orders can't be read; do both sides run the same version of Tessera?", endpoint_.name());
    }
    return orders;
  }

  StatusOr<std::string> command(const std::string& command, const std::string& argument) override {
    v1::CommandRequest request;
    request.set_command(command);
    request.set_argument(argument);
    return ask<v1::CommandAnswer>(kCommandMethod, request);
  }

  StatusOr<ports::LedgerPage> read_ledger(uint64_t after, uint64_t offset) override {
    v1::ReadLedgerRequest request;
    request.set_after(after);
    request.set_offset(offset);
    TESSERA_ASSIGN_OR_RETURN(v1::ReadLedgerAnswer answer, call<v1::ReadLedgerAnswer>(kReadLedgerMethod, request));
    ports::LedgerPage page;
    page.last_sequence = answer.last_sequence();
    page.body_bytes = answer.body_bytes();
    if (!Digest::from(answer.chain_before(), &page.chain_before)) {
      return data_loss("{}: a chain value of {} bytes", endpoint_.name(), answer.chain_before().size());
    }
    for (v1::LedgerEntry& entry : *answer.mutable_entries()) {
      page.records.push_back({entry.sequence(), entry.unix_ms(), std::move(*entry.mutable_kind()), std::move(*entry.mutable_body()), {}});
    }
    return page;
  }

 private:
  // Of the last accepted registration.
  struct Registered {
    NodeId node;
    std::string run_id;
    std::string session;
  };

  template <class Proto, class Core>
  static StatusOr<Core> converted(const std::string& name,
                                  const StatusOr<grpc::ByteBuffer>& answer) {
    const auto message = parsed<Proto>(answer);
    if (!message.ok()) return message.status();
    Core value;
    if (Status status = from_proto(*message, &value); !status.ok()) {
      return annotate(status, fmt::format("{}: its answer is wrong", name));
    }
    return value;
  }

  void register_at(const HelloInfo& info, const core::Registration& registration,
                   const std::function<void(StatusOr<core::RegisterAnswer>)>& done) {
    v1::RegisterRequest request;
    request.set_protocol_version(core::kProtocolVersion);
    to_proto(registration, request.mutable_registration());
    endpoint_.call(
        kRegisterMethod, buffer_of(serialize(request)), info.node, info.run_id, std::string(),
        timeout_ms_, [this, node = info.node, done](const StatusOr<grpc::ByteBuffer>& bytes) {
          auto answer =
              converted<v1::RegisterAnswer, core::RegisterAnswer>(endpoint_.name(), bytes);
          if (answer.ok() && answer->refusal == core::RegisterRefusal::kNone) {
            std::lock_guard lock(mutex_);
            registered_ = Registered{node, answer->run_id, answer->session};
          }
          done(std::move(answer));
        });
  }

  template <class Answer>
  StatusOr<std::string> ask(const char* method, const google::protobuf::MessageLite& request) {
    TESSERA_ASSIGN_OR_RETURN(Answer answer, call<Answer>(method, request));
    return std::move(*answer.mutable_json());
  }

  template <class Answer>
  StatusOr<Answer> call(const char* method, const google::protobuf::MessageLite& request) {
    TESSERA_ASSIGN_OR_RETURN(const HelloInfo info, endpoint_.known_or_hello(timeout_ms_));
    auto promise = std::make_shared<std::promise<StatusOr<grpc::ByteBuffer>>>();
    endpoint_.call(
        method, buffer_of(serialize(request)), info.node, info.run_id, std::string(), timeout_ms_,
        [promise](StatusOr<grpc::ByteBuffer> answer) { promise->set_value(std::move(answer)); });
    return parsed<Answer>(promise->get_future().get());
  }

  const uint32_t timeout_ms_;
  std::mutex mutex_;
  std::optional<Registered> registered_;
  OrchestratorEndpoint endpoint_;  // last: its callbacks use the members above
};

}  // namespace

StatusOr<std::unique_ptr<GrpcOrchestratorLink>> GrpcOrchestratorLink::create(
    OrchestratorLinkOptions options) {
  TESSERA_CHECK(options.signer != nullptr);
  TESSERA_RETURN_IF_ERROR(parse_address(options.orchestrator).status());
  return std::unique_ptr<GrpcOrchestratorLink>(
      std::make_unique<OrchestratorClient>(std::move(options)));
}

}  // namespace tessera::net
