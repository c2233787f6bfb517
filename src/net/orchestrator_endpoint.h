// The server at the other end of a link, known by its Hello: who it is and which run it has.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "net/client_channel.h"
#include "tessera/net/links.h"

namespace tessera::net {

// Thread-safe. Destroyed like a link.
class OrchestratorEndpoint {
 public:
  // `role` is for error messages: "orchestrator", "blob server".
  OrchestratorEndpoint(std::string role, const std::string& address,
                       std::shared_ptr<RequestSigner> signer, std::string software,
                       std::optional<NodeId> expected);

  // Asks who is there and remembers it. FAILED_PRECONDITION for another protocol version (see
  // is_version_refusal()) and for another node than expected or met before; UNAUTHENTICATED if it
  // has not the key of the id it tells.
  using HelloDone = std::function<void(StatusOr<HelloInfo>)>;
  void hello(uint32_t timeout_ms, HelloDone done);
  StatusOr<HelloInfo> hello_and_wait(uint32_t timeout_ms);
  std::optional<HelloInfo> known() const;
  // hello_and_wait() unless known already.
  StatusOr<HelloInfo> known_or_hello(uint32_t timeout_ms);

  // A signed call for `run_id` to the known node.
  void call(const char* method, grpc::ByteBuffer request, const NodeId& node,
            const std::string& run_id, const std::string& session, uint32_t timeout_ms,
            std::function<void(StatusOr<grpc::ByteBuffer>)> done, BodyDigests digests = {});
  void fail_soon(const Status& status, std::function<void(StatusOr<grpc::ByteBuffer>)> done);
  std::string name() const { return channel_.name(); }

 private:
  StatusOr<HelloInfo> check(const std::string& nonce, const StatusOr<grpc::ByteBuffer>& answer);

  const std::shared_ptr<RequestSigner> signer_;
  const std::string software_;
  const std::string role_;
  const std::optional<NodeId> expected_;
  mutable std::mutex mutex_;
  std::optional<HelloInfo> known_;
  ClientChannel channel_;  // last: its callbacks use the members above
};

// True for the status of a Hello that found another protocol version.
bool is_version_refusal(const Status& status);

// Parses an answer that a call brought.
template <class Message>
StatusOr<Message> parsed(const StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  Message message;
  TESSERA_RETURN_IF_ERROR(parse(*answer, &message));
  return message;
}

}  // namespace tessera::net
