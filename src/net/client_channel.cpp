#include "net/client_channel.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

#include "net/channel.h"

namespace tessera::net {
namespace {

// Hashing more than this takes longer than a caller should wait; it goes to another thread.
constexpr size_t kInlineHashBytes = 256 << 10;

}  // namespace

void run_soon(std::function<void()> work) {
  auto* alarm = new grpc::Alarm;
  alarm->Set(gpr_now(GPR_CLOCK_MONOTONIC), [alarm, work = std::move(work)](bool) {
    work();
    delete alarm;
  });
}

struct ClientChannel::Call {
  const char* method = nullptr;
  // It holds the channel, which may not end in a callback: so it goes before `open` forgets the
  // call.
  std::shared_ptr<grpc::ClientContext> context = std::make_shared<grpc::ClientContext>();
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
  std::optional<CallAuth> auth;
  Signature signature{};
  std::function<void(CallResult)> done;
};

struct ClientChannel::Calls {
  std::string name;
  size_t max_message_bytes = 0;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<grpc::GenericStub> stub;

  mutable std::mutex mutex;
  std::condition_variable idle;
  bool closed = false;
  std::unordered_set<std::shared_ptr<Call>> open;
};

ClientChannel::ClientChannel(std::string role, std::string address, size_t max_message_bytes)
    : calls_(std::make_shared<Calls>()) {
  calls_->name = fmt::format("{} {}", role, address);
  calls_->max_message_bytes = max_message_bytes;
  calls_->channel = open_channel(address, max_message_bytes);
  calls_->stub = std::make_unique<grpc::GenericStub>(calls_->channel);
}

ClientChannel::~ClientChannel() {
  std::vector<std::shared_ptr<grpc::ClientContext>> pending;
  {
    std::lock_guard lock(calls_->mutex);
    calls_->closed = true;
    for (const std::shared_ptr<Call>& call : calls_->open) pending.push_back(call->context);
  }
  for (const auto& context : pending) context->TryCancel();
  pending.clear();
  std::unique_lock lock(calls_->mutex);
  calls_->idle.wait(lock, [&] { return calls_->open.empty(); });
  // Here, not in a callback that may still hold `calls_` for a moment.
  calls_->stub.reset();
  calls_->channel.reset();
}

size_t ClientChannel::under_way() const {
  std::lock_guard lock(calls_->mutex);
  return calls_->open.size();
}

std::string ClientChannel::name() const { return calls_->name; }

void ClientChannel::call(const char* method, grpc::ByteBuffer request, std::optional<CallAuth> auth,
                         uint32_t timeout_ms, std::function<void(CallResult)> done) {
  auto call = std::make_shared<Call>();
  call->method = method;
  call->request = std::move(request);
  call->auth = std::move(auth);
  call->done = std::move(done);
  call->context->set_deadline(std::chrono::system_clock::now() +
                              std::chrono::milliseconds(timeout_ms));
  const size_t bytes = call->request.Length();
  Status refusal;
  if (bytes > calls_->max_message_bytes) {
    refusal = invalid_argument("the message has {} bytes, over the limit of {}", bytes,
                               calls_->max_message_bytes);
  }
  if (!enter(call))
    refusal = Status(absl::StatusCode::kCancelled, "this program is closing the link");
  if (!refusal.ok()) {
    run_soon([calls = calls_, call, refusal] { finish(calls, call, to_grpc(refusal)); });
  } else if (bytes > kInlineHashBytes && call->auth && !call->auth->digests.request) {
    run_soon([calls = calls_, call] { start(calls, call); });
  } else {
    start(calls_, call);
  }
}

void ClientChannel::fail_soon(const Status& status, std::function<void(CallResult)> done) {
  auto call = std::make_shared<Call>();
  call->done = std::move(done);
  enter(call);
  run_soon([calls = calls_, call, status] { finish(calls, call, to_grpc(status)); });
}

// False while the destructor waits: a callback may still begin a call then, which fails at once.
bool ClientChannel::enter(const std::shared_ptr<Call>& call) {
  std::lock_guard lock(calls_->mutex);
  calls_->open.insert(call);
  return !calls_->closed;
}

void ClientChannel::start(const std::shared_ptr<Calls>& calls, const std::shared_ptr<Call>& call) {
  if (call->auth) {
    const CallAuth& auth = *call->auth;
    const std::optional<Digest>& contents = auth.digests.request;
    const AuthHeader header = auth.signer->sign(call->method, auth.receiver, auth.run_id, auth.session,
                                                contents ? *contents : digest_of_buffer(call->request));
    if (contents) call->context->AddMetadata(kContentsMetadata, std::string(contents->view()));
    call->signature = header.signature;
    call->context->AddMetadata(kAuthMetadata, encode(header));
  }
  calls->stub->UnaryCall(
      call->context.get(), call->method, grpc::StubOptions(), &call->request, &call->response,
      [calls, call](const grpc::Status& status) { finish(calls, call, status); });
}

void ClientChannel::finish(const std::shared_ptr<Calls>& calls, const std::shared_ptr<Call>& call,
                           const grpc::Status& status) {
  CallResult result;
  result.remote = call->context->peer();
  if (status.ok()) {
    result.answer = std::move(call->response);
    if (call->auth) {
      if (Status problem = check_answer(*call, *result.answer); !problem.ok()) {
        result.answer = annotate(problem, calls->name);
      }
    }
  } else {
    result.answer = annotate(from_grpc(status), calls->name);
  }
  call->done(std::move(result));
  call->done = nullptr;
  std::lock_guard lock(calls->mutex);
  call->context.reset();
  calls->open.erase(call);
  if (calls->open.empty()) calls->idle.notify_all();
}

// The answer must come from the node that was asked, and be to this very request.
Status ClientChannel::check_answer(const Call& call, const grpc::ByteBuffer& answer) {
  const auto& metadata = call.context->GetServerTrailingMetadata();
  const auto found = metadata.find(kAnswerMetadata);
  Signature signature{};
  if (found == metadata.end() || found->second.size() != signature.size()) {
    return Status(absl::StatusCode::kUnauthenticated,
                  "the answer is not signed; use the same version of Tessera on both sides");
  }
  std::copy_n(reinterpret_cast<const uint8_t*>(found->second.data()), signature.size(),
              signature.begin());
  StatusOr<Digest> digest = call.auth->digests.answer ? call.auth->digests.answer(answer) : digest_of_buffer(answer);
  if (!digest.ok()) return digest.status();
  if (!verify(call.auth->receiver, signed_answer_bytes(call.method, call.signature, *digest), signature)) {
    return Status(absl::StatusCode::kUnauthenticated,
                  fmt::format("the answer is not signed by node {}: another node answers at this "
                              "address, or it was changed on the way",
                              call.auth->receiver.brief()));
  }
  return ok_status();
}

}  // namespace tessera::net
