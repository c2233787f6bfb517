// One inbound unary call with raw bytes, and what all calls of a server share.
//
// ServerCore (thread-safe, shared by the calls) knows every open call; close() answers them all
// with UNAVAILABLE. ServerCall is gRPC's reactor. It owns itself from open() until gRPC's OnDone;
// handlers hold it too, and may answer from any thread at any time: the first answer (also: the
// caller's cancellation, the shutdown) wins, later ones do nothing.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "net/wire.h"
#include "tessera/net/auth.h"
#include "tessera/ports/links.h"

namespace tessera::net {

class ServerCore;

class ServerCall final : public grpc::ServerUnaryReactor {
 public:
  ServerCall(std::shared_ptr<ServerCore> core, const char* method,
             grpc::CallbackServerContext* context, grpc::ByteBuffer* response);

  void fail(const Status& status);
  void answer(const google::protobuf::MessageLite& message);
  // The same with ready bytes; `digest` is what is signed of them.
  void answer(grpc::ByteBuffer bytes, const Digest& digest);
  // What the request was signed over. With kContents the handler must compare it with what the body holds.
  const Digest& signed_digest() const { return signed_digest_; }
  bool answered() const { return answered_.load(); }

 private:
  friend class ServerCore;
  bool claim();  // true for the first who answers
  void OnCancel() override;
  void OnDone() override;

  const std::shared_ptr<ServerCore> core_;
  const char* const method_;
  grpc::CallbackServerContext* const
      context_;                       // valid until OnDone, so for the one who answers first
  grpc::ByteBuffer* const response_;  // likewise
  Signature request_signature_{};     // empty in Hello, whose answer is signed by itself
  Digest signed_digest_;
  bool signed_request_ = false;
  std::atomic<bool> answered_{false};
};

using ServerCallPtr = std::shared_ptr<ServerCall>;

class ServerCore : public std::enable_shared_from_this<ServerCore> {
 public:
  ServerCore(const KeyPair& key, std::string run_id, AuthLimits auth, size_t max_pending_calls);

  // Admits and authenticates a call, then gives it to `serve`, which must see to it that it is
  // answered, now or later. Returns the reactor for gRPC. A call that is not let in is answered
  // here.
  using Serve = std::function<void(const ServerCallPtr&, const ports::Caller&)>;
  enum class Signed { kBody, kContents };  // kContents: a digest that the metadata tell
  grpc::ServerUnaryReactor* accept(const char* method, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                   const Serve& serve, Signed what = Signed::kBody);
  // The same without authentication, for Hello.
  grpc::ServerUnaryReactor* accept_unsigned(const char* method,
                                            grpc::CallbackServerContext* context,
                                            grpc::ByteBuffer* response,
                                            const std::function<void(const ServerCallPtr&)>& serve);

  // From now on new calls get UNAVAILABLE, and so do those under way.
  void close();

  const KeyPair& key() const { return key_; }
  RequestVerifier& verifier() { return verifier_; }

 private:
  friend class ServerCall;
  ServerCallPtr open(const char* method, grpc::CallbackServerContext* context,
                     grpc::ByteBuffer* response);
  void remove(ServerCall* call);

  const KeyPair key_;
  const size_t max_pending_calls_;
  RequestVerifier verifier_;
  std::mutex mutex_;
  bool closed_ = false;
  std::atomic<size_t> unanswered_{0};
  std::unordered_map<ServerCall*, ServerCallPtr> calls_;
};

}  // namespace tessera::net
