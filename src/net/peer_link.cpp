#include <tessera/v1/peer.pb.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "net/client_channel.h"
#include "net/convert.h"
#include "net/peer_stream.h"
#include "net/socket_bytes.h"
#include "tessera/base/log.h"
#include "tessera/net/links.h"

namespace tessera::net {
namespace {

constexpr size_t kMaxRemotes = 8192;

StatusOr<core::PeerHealth> health_in(const StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  v1::ProbeAnswer message;
  core::PeerHealth health;
  TESSERA_RETURN_IF_ERROR(parse(*answer, &message));
  TESSERA_RETURN_IF_ERROR(from_proto(message, &health));
  return health;
}

// What the connections' callbacks tell the link. Thread-safe; outlives the link if need be.
class PeerNews {
 public:
  void add_remote(const std::string& name) {
    std::lock_guard lock(mutex_);
    if (remotes_.size() < kMaxRemotes) remotes_.insert(name);
  }
  void watch_all(SocketByteCounter* sockets) const {
    std::lock_guard lock(mutex_);
    for (const std::string& remote : remotes_) sockets->watch(remote);
  }
  void on_broken(std::function<void(const NodeId&)> broken) {
    std::lock_guard lock(mutex_);
    broken_ = std::move(broken);
  }
  void tell_broken(const NodeId& node) const {
    std::function<void(const NodeId&)> broken;
    {
      std::lock_guard lock(mutex_);
      broken = broken_;
    }
    if (broken) broken(node);
  }

 private:
  mutable std::mutex mutex_;
  std::set<std::string> remotes_;  // where calls really went
  std::function<void(const NodeId&)> broken_;
};

// One peer: a connection for frames, and another, made by the first probe, on which nothing is ever
// in front of a probe.
class PeerConnection {
 public:
  PeerConnection(PeerStreamOptions options, std::shared_ptr<PeerNews> news)
      : options_(std::move(options)), news_(std::move(news)) {
    PeerStreamOptions stream = options_;
    stream.opened = [news = news_](const std::string& remote) { news->add_remote(remote); };
    stream.ended = [news = news_, node = options_.receiver, name = options_.address,
                    last_code = std::make_shared<std::atomic<int>>(0)](bool was_open,
                                                                       const Status& why) {
      log_change(name, *last_code, was_open, why);
      if (was_open) news->tell_broken(node);
    };
    stream_ = std::make_shared<PeerStream>(std::move(stream));
  }
  ~PeerConnection() { stream_->close(); }
  PeerConnection(const PeerConnection&) = delete;
  PeerConnection& operator=(const PeerConnection&) = delete;

  PeerStream& stream() { return *stream_; }
  bool busy() const {
    return stream_->under_way() > 0 || (probes_ != nullptr && probes_->under_way() > 0);
  }
  void probe(uint32_t timeout_ms, std::function<void(StatusOr<core::PeerHealth>)> done) {
    if (probes_ == nullptr) {
      probes_ = std::make_unique<ClientChannel>("peer", options_.address, kMaxPeerMessageBytes);
    }
    probes_->call(kProbeMethod, buffer_of(serialize(v1::ProbeRequest())),
                  CallAuth{options_.signer, options_.receiver, options_.run_id, std::string()},
                  timeout_ms, [news = news_, done = std::move(done)](CallResult result) {
                    news->add_remote(result.remote);
                    done(health_in(result.answer));
                  });
  }

  uint64_t last_use = 0;

 private:
  // An admission says little; the reason goes to the log, once per change. That a peer can't be
  // reached is for the node to tell.
  static void log_change(const std::string& name, std::atomic<int>& last_code, bool was_open,
                         const Status& why) {
    const int code = static_cast<int>(why.code());
    if (last_code.exchange(code) == code && !was_open) return;
    const bool told_by_node = admission_of(why) == core::Admission::kUnreachable;
    spdlog::log(told_by_node ? spdlog::level::debug : spdlog::level::warn, "peer {}: {}", name,
                message_of(why));
  }

  const PeerStreamOptions options_;
  const std::shared_ptr<PeerNews> news_;
  std::shared_ptr<PeerStream> stream_;
  std::unique_ptr<ClientChannel> probes_;
};

class PeerClient final : public GrpcPeerLink {
 public:
  explicit PeerClient(PeerLinkOptions options)
      : options_(std::move(options)),
        news_(std::make_shared<PeerNews>()),
        refusals_("peer", "0.0.0.0:0", kMaxPeerMessageBytes) {}

  void set_run(std::string run_id) override {
    if (run_id == run_id_) return;
    connections_.clear();  // they were opened for the other run
    run_id_ = std::move(run_id);
  }

  void send(const core::Peer& peer, std::string frame, uint32_t timeout_ms,
            std::function<void(core::Admission)> done) override {
    StatusOr<PeerConnection*> connection = connection_to(peer);
    if (connection.ok()) {
      return (*connection)->stream().send(std::move(frame), timeout_ms, std::move(done));
    }
    spdlog::warn("peer {}: {}", peer.miner, message_of(connection.status()));
    refusals_.fail_soon(connection.status(), [done = std::move(done)](CallResult) {
      done(core::Admission::kUnreachable);
    });
  }

  void probe(const core::Peer& peer, uint32_t timeout_ms,
             std::function<void(StatusOr<core::PeerHealth>)> done) override {
    StatusOr<PeerConnection*> connection = connection_to(peer);
    if (connection.ok()) return (*connection)->probe(timeout_ms, std::move(done));
    refusals_.fail_soon(connection.status(), [done = std::move(done)](CallResult result) {
      done(result.answer.status());
    });
  }

  void on_broken(std::function<void(const NodeId&)> broken) override {
    news_->on_broken(std::move(broken));
  }

  uint64_t bytes_sent() override {
    news_->watch_all(&sockets_);
    return sockets_.total(monotonic_now_ms());
  }

 private:
  using Key = std::pair<std::string, NodeId>;

  StatusOr<PeerConnection*> connection_to(const core::Peer& peer) {
    const Key key(peer.address, peer.node);
    auto found = connections_.find(key);
    if (found == connections_.end()) {
      TESSERA_RETURN_IF_ERROR(parse_address(peer.address).status());
      if (connections_.size() >= options_.max_channels) TESSERA_RETURN_IF_ERROR(close_idlest());
      PeerStreamOptions options;
      options.address = peer.address;
      options.receiver = peer.node;
      options.run_id = run_id_;
      options.signer = options_.signer;
      options.max_frame_bytes = options_.max_frame_bytes;
      options.queue = {.frames = options_.max_queued_frames, .bytes = options_.max_queued_bytes};
      found = connections_.emplace(key, std::make_unique<PeerConnection>(std::move(options), news_))
                  .first;
    }
    found->second->last_use = ++uses_;
    return found->second.get();
  }

  Status close_idlest() {
    auto idlest = connections_.end();
    for (auto entry = connections_.begin(); entry != connections_.end(); ++entry) {
      if (entry->second->busy()) continue;
      if (idlest == connections_.end() || entry->second->last_use < idlest->second->last_use) {
        idlest = entry;
      }
    }
    if (idlest == connections_.end()) {
      return error(absl::StatusCode::kResourceExhausted,
                   "all {} connections to peers are busy; allow more of them", connections_.size());
    }
    connections_.erase(idlest);
    return ok_status();
  }

  const PeerLinkOptions options_;
  const std::shared_ptr<PeerNews> news_;
  std::string run_id_;
  uint64_t uses_ = 0;
  SocketByteCounter sockets_;
  std::map<Key, std::unique_ptr<PeerConnection>> connections_;
  ClientChannel refusals_;  // never dials: it only reports failures found here
};

}  // namespace

std::unique_ptr<GrpcPeerLink> GrpcPeerLink::create(PeerLinkOptions options) {
  TESSERA_CHECK(options.signer != nullptr && options.max_channels > 0);
  return std::make_unique<PeerClient>(std::move(options));
}

}  // namespace tessera::net
