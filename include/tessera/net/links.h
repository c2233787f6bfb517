// The gRPC clients: ports of tessera/ports/links.h over the network.
//
// Asynchronous calls may be made by any thread and never block; every call has a deadline, and its
// callback runs exactly once, on one of gRPC's threads. A link is destroyed by its owner's thread,
// never in a callback: the destructor cancels what is under way and waits for the callbacks. The
// blocking calls must not be made in callbacks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/net/auth.h"
#include "tessera/net/server.h"
#include "tessera/ports/ledger_page.h"
#include "tessera/ports/links.h"

namespace tessera::net {

struct OrchestratorLinkOptions {
  std::string orchestrator;               // host:port
  std::shared_ptr<RequestSigner> signer;  // one for all links of the process
  std::string software;                   // version, for people
  // The id the orchestrator must have. Without it the first one met at the address is trusted, and
  // none other after it.
  std::optional<NodeId> expected_orchestrator;
  uint32_t timeout_ms = 10000;  // of one call
};

struct HelloInfo {
  NodeId node;  // the orchestrator: it proved that it has the key
  std::string run_id;
  std::string software;
};

class GrpcOrchestratorLink : public ports::OrchestratorLink, public ports::ValidatorLink {
 public:
  // INVALID_ARGUMENT for a malformed address.
  static StatusOr<std::unique_ptr<GrpcOrchestratorLink>> create(OrchestratorLinkOptions options);

  // Says Hello first, each time, so it finds a new run at the old address. A refusal for the
  // protocol's version, found in Hello, is an answer too, not an error.
  void register_miner(core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override = 0;
  // FAILED_PRECONDITION before an accepted registration. UNAUTHENTICATED when the orchestrator does
  // not take the signature (another run, a clock far off): register again.
  void sync(core::SyncRequest request,
            std::function<void(StatusOr<core::SyncAnswer>)> done) override = 0;

  // Blocking. Says Hello first if need be. PERMISSION_DENIED if the orchestrator does not know this key as a validator's.
  StatusOr<core::ValidatorOrders> report(const core::ValidatorReport& report) override = 0;

  // Blocking, for tools. query() and command() say Hello first if need be.
  virtual StatusOr<HelloInfo> hello() = 0;
  virtual StatusOr<std::string> query(const std::string& topic, const std::string& argument) = 0;
  virtual StatusOr<std::string> command(const std::string& command,
                                        const std::string& argument) = 0;
  // A page of the public ledger, as ports::LedgerPage says.
  virtual StatusOr<ports::LedgerPage> read_ledger(uint64_t after, uint64_t offset) = 0;
};

struct BlobLinkOptions {
  std::string server;  // host:port
  std::shared_ptr<RequestSigner> signer;
  std::string software;
  std::optional<NodeId> expected_server;  // as in OrchestratorLinkOptions
  uint32_t call_timeout_ms = 30000;       // of one call of up to 2 MiB
  uint32_t deadline_ms = 120000;          // of a whole put() or get()
  uint32_t min_backoff_ms = 50;  // between attempts: doubles up to the maximum, with jitter
  uint32_t max_backoff_ms = 5000;
};

// UNAVAILABLE, RESOURCE_EXHAUSTED and calls that time out are tried again until the deadline. put()
// checks the digests the server answers, get() every content. Any thread may use it, also several
// at once.
class GrpcBlobLink : public ports::BlobLink {
 public:
  static StatusOr<std::unique_ptr<GrpcBlobLink>> create(BlobLinkOptions options);
  // INVALID_ARGUMENT for a blob over kMaxBlobBytes.
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override = 0;
  // NOT_FOUND for one the server has not, DATA_LOSS for one it can't read or that is not what its
  // digest says.
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override = 0;
};

struct PeerLinkOptions {
  std::shared_ptr<RequestSigner> signer;
  size_t max_frame_bytes = kDefaultMaxFrameBytes;
  size_t max_channels = 1024;  // peers; over it the one that was idle longest is closed
  // Frames for one peer that are not wholly sent; over it kFull.
  size_t max_queued_frames = 1024;
  size_t max_queued_bytes = size_t{1} << 30;
};

// send(), probe(), bytes_sent() and set_run() belong to one thread. Frames to a peer go over one
// stream that stays open, backwards before forwards, in chunks; probes have a connection of their
// own. A frame's callback runs on one of gRPC's threads, or in the destructor or set_run().
class GrpcPeerLink : public ports::PeerLink {
 public:
  static std::unique_ptr<GrpcPeerLink> create(PeerLinkOptions options);
  // The run frames and probes are signed for, as its registration told. Another one than before
  // ends what is under way.
  virtual void set_run(std::string run_id) = 0;
  void send(const core::Peer& peer, std::string frame, uint32_t timeout_ms,
            std::function<void(core::Admission)> done) override = 0;
  void probe(const core::Peer& peer, uint32_t timeout_ms,
             std::function<void(StatusOr<core::PeerHealth>)> done) override = 0;
  // Streams that were open and were not closed by this side: the peer's process ended, or nothing
  // has come over the connection for 25 s.
  void on_broken(std::function<void(const NodeId&)> broken) override = 0;
  // Counts a connection from its opening on. Looks at the sockets at most every 200
  // ms. Never shrinks.
  uint64_t bytes_sent() override = 0;
};

// Chunks of a stage's state from the replicas that hold it: one call at a time a donor, 10 s each, and none is tried again.
// NOT_FOUND for what a donor does not hold, DATA_LOSS for what is not what its name says. Any thread.
class GrpcDonorLinks : public ports::DonorLinks {
 public:
  static std::unique_ptr<GrpcDonorLinks> create(std::shared_ptr<RequestSigner> signer);
  // As for GrpcPeerLink; holds for what is connected afterwards.
  virtual void set_run(std::string run_id) = 0;
};

}  // namespace tessera::net
