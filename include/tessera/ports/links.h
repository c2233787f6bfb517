// The network as node code sees it. The product's links are gRPC (src/net); tests connect nodes in process.
// Asynchronous calls never block the caller; their callbacks run on a thread of the link, exactly once, always (after a
// deadline at the latest), and must only enqueue.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/audit_messages.h"
#include "tessera/core/messages.h"

namespace tessera::ports {

// Who sent a request, as proved by its signature.
struct Caller {
  NodeId node;
  std::string session;  // as given at registration; empty in calls that need none
  std::string address;  // of the connection, for the log
};

// ---- served by an orchestrator --------------------------------------------------------------------------------------

class OrchestratorHandler {
 public:
  virtual ~OrchestratorHandler() = default;
  // Called on the server's threads: check, enqueue, return. `done` may be called from any thread, once.
  virtual void on_register(const Caller& caller, core::Registration registration,
                           std::function<void(StatusOr<core::RegisterAnswer>)> done) = 0;
  virtual void on_sync(const Caller& caller, core::SyncRequest request,
                       std::function<void(StatusOr<core::SyncAnswer>)> done) = 0;
  virtual void on_validate(const Caller& caller, core::ValidatorReport report,
                           std::function<void(StatusOr<core::ValidatorOrders>)> done) {
    done(error(absl::StatusCode::kUnimplemented, "this orchestrator takes no validators"));
  }
  // A question anyone may ask; the answer is JSON. Topics: "status", "miners".
  virtual void on_query(const Caller& caller, std::string topic, std::string argument,
                        std::function<void(StatusOr<std::string>)> done) = 0;
  // An order of an administrator; the answer is JSON. Commands: "pause", "resume", "stop", "checkpoint".
  virtual void on_command(const Caller& caller, std::string command, std::string argument,
                          std::function<void(StatusOr<std::string>)> done) = 0;
};

// Blobs by content. Used on background threads: calls block, within the link's deadline.
class BlobLink {
 public:
  virtual ~BlobLink() = default;
  // Puts what is not there yet. All digests in order.
  virtual StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) = 0;
  // The same for blobs whose names are known and which nobody has stored yet: nobody is asked first.
  virtual Status put_new(const std::vector<Digest>& names, const std::vector<std::string>& blobs) { return put(blobs).status(); }
  // All of them in order, each checked against its digest, or the error of the first that could not be had.
  virtual StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) = 0;
  // The same, but what is not there is no error: it is left out. Waits up to `wait_ms` for all of them to be there, if it can.
  virtual StatusOr<std::vector<std::optional<std::string>>> get_present(const std::vector<Digest>& digests, uint32_t /*wait_ms*/) {
    std::vector<std::optional<std::string>> contents;
    for (const Digest& digest : digests) {
      StatusOr<std::vector<std::string>> content = get({digest});
      if (!content.ok() && !absl::IsNotFound(content.status())) return content.status();
      contents.push_back(content.ok() ? std::optional(std::move(content->at(0))) : std::nullopt);
    }
    return contents;
  }
};

// Replicas that give the state of their stage away. Any thread.
class DonorLinks {
 public:
  virtual ~DonorLinks() = default;
  // For get() only, whose calls end within a few seconds each.
  virtual std::unique_ptr<BlobLink> connect(const core::Peer& donor) = 0;
};

// ---- used by a miner ------------------------------------------------------------------------------------------------

class OrchestratorLink {
 public:
  virtual ~OrchestratorLink() = default;
  virtual void register_miner(core::Registration registration,
                              std::function<void(StatusOr<core::RegisterAnswer>)> done) = 0;
  // Signs with the session and run of the last accepted registration.
  virtual void sync(core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) = 0;
};

// Used by a validator. Blocks, within the link's deadline.
class ValidatorLink {
 public:
  virtual ~ValidatorLink() = default;
  virtual StatusOr<core::ValidatorOrders> report(const core::ValidatorReport& report) = 0;
};

class PeerLink {
 public:
  virtual ~PeerLink() = default;
  // Sends an encoded frame. kUnreachable: no answer within `timeout_ms`, or no connection.
  virtual void send(const core::Peer& peer, std::string frame, uint32_t timeout_ms,
                    std::function<void(core::Admission)> done) = 0;
  // Asks a peer how it is; the answer comes from its control thread. Error: no answer within `timeout_ms`, or no connection.
  virtual void probe(const core::Peer& peer, uint32_t timeout_ms,
                     std::function<void(StatusOr<core::PeerHealth>)> done) = 0;
  // `broken` is called (on a thread of the link, it must only enqueue) when an established connection to a peer breaks.
  virtual void on_broken(std::function<void(const NodeId&)> broken) = 0;
  // Bytes sent so far on connections to peers, as the kernel counts them (TCP_INFO), headers of TCP and IP not included.
  virtual uint64_t bytes_sent() = 0;
};

class PeerHandler {
 public:
  virtual ~PeerHandler() = default;
  virtual void on_frame(const Caller& caller, std::string frame, std::function<void(core::Admission)> done) = 0;
  virtual void on_probe(const Caller& caller, std::function<void(StatusOr<core::PeerHealth>)> done) = 0;
  // A chunk of the stage's state that this replica holds, on a thread of the server that may work. NOT_FOUND if it is none.
  virtual StatusOr<std::string> donate(const Digest& name) { return error(absl::StatusCode::kNotFound, "nothing is given away"); }
};

}  // namespace tessera::ports
