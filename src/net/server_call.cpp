#include "net/server_call.h"

#include <utility>
#include <vector>

namespace tessera::net {
namespace {

std::string metadata_of(const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(name);
  if (found == metadata.end()) return {};
  return std::string(found->second.data(), found->second.size());
}

}  // namespace

ServerCall::ServerCall(std::shared_ptr<ServerCore> core, const char* method,
                       grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
    : core_(std::move(core)), method_(method), context_(context), response_(response) {}

bool ServerCall::claim() {
  if (answered_.exchange(true)) return false;
  --core_->unanswered_;  // before the caller can know of the answer, and call again
  return true;
}

void ServerCall::fail(const Status& status) {
  if (claim()) Finish(to_grpc(status));
}

void ServerCall::answer(const google::protobuf::MessageLite& message) {
  if (answered()) return;  // spares the work below; claim() decides
  std::string bytes = serialize(message);
  const Digest digest = signed_request_ ? digest_of(bytes) : Digest{};
  answer(buffer_of(std::move(bytes)), digest);
}

void ServerCall::answer(grpc::ByteBuffer bytes, const Digest& digest) {
  if (answered()) return;
  if (bytes.Length() > kMaxControlBytes) {
    return fail(error(absl::StatusCode::kResourceExhausted,
                      "the answer has {} bytes, over the limit of {}", bytes.Length(),
                      kMaxControlBytes));
  }
  std::string signature;
  if (signed_request_) {
    const Signature raw = core_->key().sign(signed_answer_bytes(method_, request_signature_, digest));
    signature.assign(reinterpret_cast<const char*>(raw.data()), raw.size());
  }
  if (!claim()) return;
  if (signed_request_) context_->AddTrailingMetadata(kAnswerMetadata, signature);
  *response_ = std::move(bytes);
  Finish(grpc::Status::OK);
}

void ServerCall::OnCancel() { fail(Status(absl::StatusCode::kCancelled, "the caller gave up")); }

void ServerCall::OnDone() { core_->remove(this); }

ServerCore::ServerCore(const KeyPair& key, std::string run_id, AuthLimits auth,
                       size_t max_pending_calls)
    : key_(key),
      max_pending_calls_(max_pending_calls),
      verifier_(key.id(), std::move(run_id), std::move(auth)) {}

ServerCallPtr ServerCore::open(const char* method, grpc::CallbackServerContext* context,
                               grpc::ByteBuffer* response) {
  auto call = std::make_shared<ServerCall>(shared_from_this(), method, context, response);
  Status refusal;
  {
    std::lock_guard lock(mutex_);
    if (closed_) {
      refusal = unavailable("this server is shutting down; try again later");
    } else if (unanswered_ >= max_pending_calls_) {
      refusal = error(absl::StatusCode::kResourceExhausted,
                      "{} calls are under way here already; try again later", unanswered_.load());
    }
    ++unanswered_;
    calls_.emplace(call.get(), call);  // a refused one too: it must live until OnDone
  }
  if (!refusal.ok()) call->fail(refusal);
  return call;
}

grpc::ServerUnaryReactor* ServerCore::accept(const char* method,
                                             grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response, const Serve& serve, Signed what) {
  const ServerCallPtr call = open(method, context, response);
  if (call->answered()) return call.get();
  if (what == Signed::kBody) {
    call->signed_digest_ = digest_of_buffer(*request);
  } else if (!Digest::from(metadata_of(*context, kContentsMetadata), &call->signed_digest_)) {
    call->fail(Status(absl::StatusCode::kUnauthenticated,
                      fmt::format("the request has no {} metadata; use the same version of Tessera on both sides",
                                  kContentsMetadata)));
    return call.get();
  }
  const auto header = verifier_.verify(method, metadata_of(*context, kAuthMetadata), call->signed_digest_);
  if (!header.ok()) {
    call->fail(header.status());
    return call.get();
  }
  call->request_signature_ = header->signature;
  call->signed_request_ = true;
  serve(call, ports::Caller{header->node, header->session, context->peer()});
  return call.get();
}

grpc::ServerUnaryReactor* ServerCore::accept_unsigned(
    const char* method, grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
    const std::function<void(const ServerCallPtr&)>& serve) {
  const ServerCallPtr call = open(method, context, response);
  if (!call->answered()) serve(call);
  return call.get();
}

void ServerCore::close() {
  std::vector<ServerCallPtr> pending;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    for (const auto& [pointer, call] : calls_) pending.push_back(call);
  }
  for (const ServerCallPtr& call : pending) {
    call->fail(unavailable("this server is shutting down; try again later"));
  }
}

void ServerCore::remove(ServerCall* call) {
  ServerCallPtr last;  // destroyed after the lock is gone
  std::lock_guard lock(mutex_);
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  last = std::move(found->second);
  calls_.erase(found);
}

}  // namespace tessera::net
