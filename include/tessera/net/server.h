// The gRPC servers of the orchestrator and of a miner.
//
// Threads: start(), set_run() and shutdown() belong to the owner's thread. Handlers are called on
// gRPC's threads, on_frame() and donate() on threads of the server, and must only check and enqueue (donate() may copy); their `done` may be called later from any thread,
// also after shutdown() (then it does nothing). After shutdown() has returned no handler is called
// any more.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/crypto.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/net/auth.h"
#include "tessera/ports/ledger_page.h"
#include "tessera/ports/links.h"

namespace tessera::net {

inline constexpr size_t kMaxBlobBytes = 1 << 20;
inline constexpr size_t kDefaultMaxFrameBytes = 256u << 20;

// What the blob service serves from; the app wires it to a store. Thread-safe.
class BlobBackend {
 public:
  virtual ~BlobBackend() = default;
  // May this caller read, or write? Called on gRPC's threads: no I/O.
  virtual Status admit(const ports::Caller& caller, bool write) { return ok_status(); }
  // The rest is called on the server's blob threads. `content` has at most kMaxBlobBytes; `name` is its digest, just made.
  virtual Status put(const ports::Caller& caller, const Digest& name, std::string content) = 0;
  // NOT_FOUND if there is none.
  virtual StatusOr<std::string> get(const Digest& digest) = 0;
  virtual bool has(const Digest& digest) = 0;
  // The run's public ledger, if this process keeps it. OUT_OF_RANGE: it has no entry `after`.
  virtual StatusOr<ports::LedgerPage> read_ledger(uint64_t after, uint64_t offset) {
    return error(absl::StatusCode::kUnimplemented, "this server keeps no ledger (entry {}, byte {}); ask the orchestrator", after, offset);
  }
};

struct OrchestratorServerOptions {
  std::string listen;         // host:port; port 0 picks a free one
  KeyPair key;                // the server's identity
  std::string run_id = {};    // at most 16 bytes
  std::string software = {};  // version, for people
  AuthLimits auth = {};
  size_t max_pending_calls = 4096;  // over it: RESOURCE_EXHAUSTED
  size_t blob_threads = 2;
  // Over it: RESOURCE_EXHAUSTED, and the client tries again later.
  size_t max_queued_blob_calls = 64;
};

class OrchestratorServer {
 public:
  // `handler` or `blobs` may be null: its service then answers UNIMPLEMENTED. Both must outlive the
  // server.
  static StatusOr<std::unique_ptr<OrchestratorServer>> start(OrchestratorServerOptions options,
                                                             ports::OrchestratorHandler* handler,
                                                             BlobBackend* blobs);
  virtual ~OrchestratorServer() = default;
  virtual int port() const = 0;
  virtual std::string address() const = 0;  // host:port as listened on, with the real port
  // Answers what is pending with UNAVAILABLE and closes the connections, within about
  // `deadline_ms`. Idempotent; the destructor does it too.
  virtual void shutdown(uint32_t deadline_ms = 1000) = 0;
};

struct PeerServerOptions {
  std::string listen;
  KeyPair key;
  AuthLimits auth = {};
  size_t max_frame_bytes = kDefaultMaxFrameBytes;
  size_t max_streams = 1024;        // of all peers; two a peer at most
  size_t handler_threads = 2;       // that call on_frame()
  size_t max_pending_calls = 1024;  // probes
  // That read what is given away of the stage's state, and what waits for them; over it RESOURCE_EXHAUSTED.
  size_t donor_threads = 2;
  size_t max_queued_donations = 32;
};

class PeerServer {
 public:
  static StatusOr<std::unique_ptr<PeerServer>> start(PeerServerOptions options,
                                                     ports::PeerHandler* handler);
  virtual ~PeerServer() = default;
  virtual int port() const = 0;
  virtual std::string address() const = 0;
  // The run whose frames are accepted. Before the first call frames are refused as for a miner that
  // is not ready.
  virtual void set_run(std::string run_id) = 0;
  virtual void shutdown(uint32_t deadline_ms = 1000) = 0;
};

}  // namespace tessera::net
