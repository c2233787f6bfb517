#include <tessera/v1/peer.pb.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "net/client_channel.h"
#include "net/convert.h"
#include "net/socket_bytes.h"
#include "tessera/base/log.h"
#include "tessera/net/links.h"

namespace tessera::net {
namespace {

constexpr size_t kMaxRemotes = 8192;

core::Admission admission_of(const Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
      return core::Admission::kUnauthenticated;
    case absl::StatusCode::kResourceExhausted:
      return core::Admission::kFull;
    case absl::StatusCode::kFailedPrecondition:
      return core::Admission::kNotReady;
    case absl::StatusCode::kInvalidArgument:
      return core::Admission::kCorrupt;
    default:
      return core::Admission::kUnreachable;
  }
}

StatusOr<core::Admission> admission_in(const StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  v1::SendFrameAnswer message;
  core::Admission admission = core::Admission::kUnreachable;
  TESSERA_RETURN_IF_ERROR(parse(*answer, &message));
  TESSERA_RETURN_IF_ERROR(from_proto(message, &admission));
  return admission;
}

StatusOr<core::PeerHealth> health_in(const StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  v1::ProbeAnswer message;
  core::PeerHealth health;
  TESSERA_RETURN_IF_ERROR(parse(*answer, &message));
  TESSERA_RETURN_IF_ERROR(from_proto(message, &health));
  return health;
}

class PeerClient final : public GrpcPeerLink {
 public:
  explicit PeerClient(PeerLinkOptions options)
      : options_(std::move(options)),
        remotes_(std::make_shared<Remotes>()),
        refusals_("peer", "0.0.0.0:0", kFrameEnvelopeBytes) {}

  void set_run(std::string run_id) override { run_id_ = std::move(run_id); }

  void send(const core::Peer& peer, std::string frame, uint32_t timeout_ms,
            std::function<void(core::Admission)> done) override {
    StatusOr<Connection*> connection = connection_to(peer.address);
    if (!connection.ok()) {
      spdlog::warn("peer {}: {}", peer.miner, message_of(connection.status()));
      return refusals_.fail_soon(connection.status(), [done = std::move(done)](CallResult) {
        done(core::Admission::kUnreachable);
      });
    }
    ClientChannel& channel = *(*connection)->channel;
    channel.call(kSendFrameMethod, frame_buffer(std::move(frame)),
                 CallAuth{options_.signer, peer.node, run_id_, std::string()}, timeout_ms,
                 [last_code = (*connection)->last_code, remotes = remotes_, broken = broken_,
                  node = peer.node, done = std::move(done)](CallResult result) {
                   remotes->add(std::move(result.remote));
                   const auto admission = admission_in(result.answer);
                   if (broke(*last_code, admission.status()) && broken) broken(node);
                   log_change(*last_code, admission.status());
                   done(admission.ok() ? *admission : admission_of(admission.status()));
                 });
  }

  void probe(const core::Peer& peer, uint32_t timeout_ms,
             std::function<void(StatusOr<core::PeerHealth>)> done) override {
    StatusOr<Connection*> connection = connection_to(peer.address);
    if (!connection.ok()) {
      return refusals_.fail_soon(connection.status(),
                                 [done = std::move(done)](CallResult result) {
                                   done(result.answer.status());
                                 });
    }
    (*connection)
        ->channel->call(kProbeMethod, buffer_of(serialize(v1::ProbeRequest())),
                        CallAuth{options_.signer, peer.node, run_id_, std::string()}, timeout_ms,
                        [last_code = (*connection)->last_code, broken = broken_, node = peer.node,
                         done = std::move(done)](CallResult result) {
                          const auto health = health_in(result.answer);
                          if (broke(*last_code, health.status()) && broken) broken(node);
                          log_change(*last_code, health.status());
                          done(health);
                        });
  }

  void on_broken(std::function<void(const NodeId&)> broken) override {
    broken_ = std::move(broken);
  }

  uint64_t bytes_sent() override {
    {
      std::lock_guard lock(remotes_->mutex);
      for (const std::string& remote : remotes_->names) sockets_.watch(remote);
    }
    return sockets_.total(monotonic_now_ms());
  }

 private:
  // Where calls really went, told by their callbacks.
  struct Remotes {
    std::mutex mutex;
    std::set<std::string> names;
    void add(std::string name) {
      std::lock_guard lock(mutex);
      if (names.size() < kMaxRemotes) names.insert(std::move(name));
    }
  };
  struct Connection {
    std::unique_ptr<ClientChannel> channel;
    uint64_t last_use = 0;
    std::shared_ptr<std::atomic<int>> last_code;  // of the last answer, shared with the callbacks
  };

  // A connection that worked and does no more.
  static bool broke(const std::atomic<int>& last_code, const Status& status) {
    return absl::IsUnavailable(status) && last_code.load() == 0;
  }

  // An admission says little; the reason goes to the log, once per change. That a peer can't be
  // reached is for the node to tell.
  static void log_change(std::atomic<int>& last_code, const Status& status) {
    const int code = static_cast<int>(status.code());
    if (last_code.exchange(code) == code || status.ok()) return;
    if (admission_of(status) == core::Admission::kUnreachable) {
      spdlog::debug("{}", message_of(status));
    } else {
      spdlog::warn("{}", message_of(status));
    }
  }

  StatusOr<Connection*> connection_to(const std::string& address) {
    auto found = connections_.find(address);
    if (found == connections_.end()) {
      TESSERA_RETURN_IF_ERROR(parse_address(address).status());
      if (connections_.size() >= options_.max_channels) TESSERA_RETURN_IF_ERROR(close_idlest());
      Connection connection;
      connection.channel = std::make_unique<ClientChannel>(
          "peer", address, options_.max_frame_bytes + kFrameEnvelopeBytes);
      connection.last_code = std::make_shared<std::atomic<int>>(0);
      found = connections_.emplace(address, std::move(connection)).first;
    }
    found->second.last_use = ++uses_;
    return &found->second;
  }

  Status close_idlest() {
    auto idlest = connections_.end();
    for (auto entry = connections_.begin(); entry != connections_.end(); ++entry) {
      if (entry->second.channel->under_way() > 0) continue;
      if (idlest == connections_.end() || entry->second.last_use < idlest->second.last_use) {
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
  const std::shared_ptr<Remotes> remotes_;
  std::string run_id_;
  std::function<void(const NodeId&)> broken_;
  uint64_t uses_ = 0;
  SocketByteCounter sockets_;
  std::map<std::string, Connection> connections_;
  ClientChannel refusals_;  // never dials: it only reports failures found here
};

}  // namespace

std::unique_ptr<GrpcPeerLink> GrpcPeerLink::create(PeerLinkOptions options) {
  TESSERA_CHECK(options.signer != nullptr && options.max_channels > 0);
  return std::make_unique<PeerClient>(std::move(options));
}

}  // namespace tessera::net
