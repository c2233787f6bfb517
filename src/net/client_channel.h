// A connection to one server and the calls under way on it.
//
// call() may be used by any thread and never blocks; its callback runs once, on one of gRPC's
// threads. The destructor cancels what is under way, waits until the last callback has returned (so
// it must not run in one), and then closes the connection.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "net/wire.h"
#include "tessera/base/status.h"
#include "tessera/net/auth.h"

namespace tessera::net {

// Runs `work` soon on one of gRPC's threads.
void run_soon(std::function<void()> work);

// What is signed of a call's bodies.
struct BodyDigests {
  // None: the digest of the exact request body. Else this one, which the call tells in its metadata.
  std::optional<Digest> request;
  // Empty: the digest of the exact answer body. Called on one of gRPC's threads.
  std::function<StatusOr<Digest>(const grpc::ByteBuffer& answer)> answer;
};

// What to sign a request with, and who must have signed its answer.
struct CallAuth {
  std::shared_ptr<RequestSigner> signer;
  NodeId receiver;
  std::string run_id;
  std::string session;
  BodyDigests digests = {};
};

struct CallResult {
  StatusOr<grpc::ByteBuffer> answer = absl::UnknownError("");
  std::string
      remote;  // gRPC's name of the address it was connected to; for TCP "ipv4:..." or "ipv6:..."
};

class ClientChannel {
 public:
  // `role` and address begin every error message.
  ClientChannel(std::string role, std::string address, size_t max_message_bytes);
  ~ClientChannel();
  ClientChannel(const ClientChannel&) = delete;
  ClientChannel& operator=(const ClientChannel&) = delete;

  // Without `auth` the call is not signed and its answer not checked (Hello).
  void call(const char* method, grpc::ByteBuffer request, std::optional<CallAuth> auth,
            uint32_t timeout_ms, std::function<void(CallResult)> done);
  // Reports a failure found before the call as the call would: later, on another thread.
  void fail_soon(const Status& status, std::function<void(CallResult)> done);
  // Calls whose callback has not returned yet.
  size_t under_way() const;
  std::string name() const;  // role and address

 private:
  struct Call;
  struct Calls;  // shared with the callbacks
  bool enter(const std::shared_ptr<Call>& call);
  static void start(const std::shared_ptr<Calls>& calls, const std::shared_ptr<Call>& call);
  static void finish(const std::shared_ptr<Calls>& calls, const std::shared_ptr<Call>& call,
                     const grpc::Status& status);
  static Status check_answer(const Call& call, const grpc::ByteBuffer& answer);

  const std::shared_ptr<Calls> calls_;
};

}  // namespace tessera::net
