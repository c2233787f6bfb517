#include "net/orchestrator_endpoint.h"

#include <tessera/v1/orchestrator.pb.h>

#include <future>
#include <utility>

#include "net/field_check.h"

namespace tessera::net {
namespace {

// Marks a version refusal among the other FAILED_PRECONDITIONs of a Hello.
constexpr char kVersionPayload[] = "tessera/protocol-version";

Status version_refusal(std::string message) {
  Status status = failed_precondition("{}", message);
  status.SetPayload(kVersionPayload, absl::Cord("1"));
  return status;
}

}  // namespace

bool is_version_refusal(const Status& status) {
  return status.GetPayload(kVersionPayload).has_value();
}

OrchestratorEndpoint::OrchestratorEndpoint(std::string role, const std::string& address,
                                           std::shared_ptr<RequestSigner> signer,
                                           std::string software, std::optional<NodeId> expected)
    : signer_(std::move(signer)),
      software_(std::move(software)),
      role_(role),
      expected_(expected),
      channel_(std::move(role), address, kMaxControlBytes) {}

void OrchestratorEndpoint::hello(uint32_t timeout_ms, HelloDone done) {
  v1::HelloRequest request;
  request.set_protocol_version(core::kProtocolVersion);
  request.set_software(software_);
  std::string nonce = random_bytes(kHelloNonceBytes);
  request.set_nonce(nonce);
  channel_.call(kHelloMethod, buffer_of(serialize(request)), std::nullopt, timeout_ms,
                [this, nonce = std::move(nonce), done = std::move(done)](CallResult result) {
                  done(check(nonce, result.answer));
                });
}

StatusOr<HelloInfo> OrchestratorEndpoint::check(const std::string& nonce,
                                                const StatusOr<grpc::ByteBuffer>& answer) {
  const auto message = parsed<v1::HelloAnswer>(answer);
  if (!message.ok()) return message.status();
  // First the version: another one may sign differently.
  if (message->protocol_version() != core::kProtocolVersion) {
    return version_refusal(version_mismatch(
        fmt::format("this program (software {})", software_), core::kProtocolVersion,
        fmt::format("{} (software {})", name(), message->software().substr(0, kMaxShortText)),
        message->protocol_version()));
  }
  HelloInfo info;
  Signature signature{};
  FieldCheck fields;
  fields.bytes32("node", message->node(), &info.node);
  fields.text("run_id", message->run_id(), kMaxRunIdBytes, &info.run_id);
  fields.text("software", message->software(), kMaxShortText, &info.software);
  fields.signature("signature", message->signature(), &signature);
  if (!fields.ok()) return annotate(fields.status(), name());
  if (!verify(info.node, hello_bytes(nonce, core::kProtocolVersion, info.run_id, info.node),
              signature)) {
    return Status(
        absl::StatusCode::kUnauthenticated,
        fmt::format("{}: it says it is node {} but has not its key; somebody else answers "
                    "at this address",
                    name(), info.node.hex()));
  }
  if (expected_ && *expected_ != info.node) {
    return failed_precondition(
        "{}: it is node {}, but node {} is expected; check the address and "
        "the configured id",
        name(), info.node.hex(), expected_->hex());
  }
  std::lock_guard lock(mutex_);
  if (known_ && known_->node != info.node) {
    return failed_precondition(
        "{}: it was node {} before and is node {} now; if the {} was set up "
        "anew, restart this program",
        name(), known_->node.hex(), info.node.hex(), role_);
  }
  known_ = info;
  return info;
}

StatusOr<HelloInfo> OrchestratorEndpoint::hello_and_wait(uint32_t timeout_ms) {
  auto promise = std::make_shared<std::promise<StatusOr<HelloInfo>>>();
  hello(timeout_ms, [promise](StatusOr<HelloInfo> info) { promise->set_value(std::move(info)); });
  return promise->get_future().get();
}

std::optional<HelloInfo> OrchestratorEndpoint::known() const {
  std::lock_guard lock(mutex_);
  return known_;
}

StatusOr<HelloInfo> OrchestratorEndpoint::known_or_hello(uint32_t timeout_ms) {
  if (std::optional<HelloInfo> info = known()) return *info;
  return hello_and_wait(timeout_ms);
}

void OrchestratorEndpoint::call(const char* method, grpc::ByteBuffer request, const NodeId& node,
                                const std::string& run_id, const std::string& session,
                                uint32_t timeout_ms,
                                std::function<void(StatusOr<grpc::ByteBuffer>)> done, BodyDigests digests) {
  channel_.call(method, std::move(request), CallAuth{signer_, node, run_id, session, std::move(digests)}, timeout_ms,
                [done = std::move(done)](CallResult result) { done(std::move(result.answer)); });
}

void OrchestratorEndpoint::fail_soon(const Status& status,
                                     std::function<void(StatusOr<grpc::ByteBuffer>)> done) {
  channel_.fail_soon(
      status, [done = std::move(done)](CallResult result) { done(std::move(result.answer)); });
}

}  // namespace tessera::net
