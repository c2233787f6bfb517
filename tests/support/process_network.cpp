#include "support/process_network.h"

namespace tessera::test {
namespace {

constexpr auto kCallLimit = std::chrono::milliseconds(2000);

// Calls `done` on the network's thread with the first answer only.
template <class Answer>
class Once {
 public:
  Once(ProcessNetwork& network, std::function<void(Answer)> done)
      : network_(network), done_(std::move(done)) {}
  void answer(Answer with) {
    if (answered_.exchange(true)) return;
    network_.post(
        [done = std::move(done_), with = std::move(with)]() mutable { done(std::move(with)); });
  }

 private:
  ProcessNetwork& network_;
  std::function<void(Answer)> done_;
  std::atomic<bool> answered_{false};
};

}  // namespace

ProcessNetwork::ProcessNetwork() {
  thread_ = std::jthread([this] { loop(); });
}

ProcessNetwork::~ProcessNetwork() {
  std::lock_guard lock(queue_mutex_);
  closed_ = true;
  queue_changed_.notify_all();
}

void ProcessNetwork::post(std::function<void()> task, std::chrono::milliseconds delay) {
  std::lock_guard lock(queue_mutex_);
  queue_.emplace(std::chrono::steady_clock::now() + delay, std::move(task));
  queue_changed_.notify_all();
}

void ProcessNetwork::loop() {
  std::unique_lock lock(queue_mutex_);
  while (!closed_) {
    const auto now = std::chrono::steady_clock::now();
    if (queue_.empty()) {
      queue_changed_.wait(lock);
    } else if (queue_.begin()->first > now) {
      queue_changed_.wait_until(lock, queue_.begin()->first);
    } else {
      const auto task = queue_.extract(queue_.begin());
      lock.unlock();
      task.mapped()();
      lock.lock();
    }
  }
}

void ProcessNetwork::serve_orchestrator(ports::OrchestratorHandler* handler) {
  std::lock_guard lock(endpoints_mutex_);
  orchestrator_ = handler;
}

void ProcessNetwork::serve_peer(const std::string& address, ports::PeerHandler* handler) {
  std::lock_guard lock(endpoints_mutex_);
  if (handler != nullptr) {
    peers_[address] = handler;
    return;
  }
  peers_.erase(address);
  for (auto& [watcher, watch] : watches_) {
    if (watch.talked_to.erase(address) > 0 && watch.broken) watch.broken(node_at_.at(address));
  }
}

void ProcessNetwork::cut(const std::string& address, bool is_cut) {
  std::lock_guard lock(endpoints_mutex_);
  if (is_cut) {
    cut_.insert(address);
  } else {
    cut_.erase(address);
  }
}

bool ProcessNetwork::is_cut(const std::string& from, const std::string& to) const {
  return cut_.count(from) > 0 || cut_.count(to) > 0;
}

// Who serves there, or null; from now on the caller has a connection to it.
ports::PeerHandler* ProcessNetwork::reach(const std::string& from, const core::Peer& peer) {
  const auto handler = peers_.find(peer.address);
  if (handler == peers_.end() || is_cut(from, peer.address)) return nullptr;
  watches_[from].talked_to.insert(peer.address);
  node_at_[peer.address] = peer.node;
  return handler->second;
}

class ProcessNetwork::PeerSide final : public ports::PeerLink {
 public:
  PeerSide(ProcessNetwork& network, const NodeId& node, std::string address)
      : network_(network), node_(node), address_(std::move(address)) {}
  ~PeerSide() override {
    std::lock_guard lock(network_.endpoints_mutex_);
    network_.watches_.erase(address_);
  }

  void on_broken(std::function<void(const NodeId&)> broken) override {
    std::lock_guard lock(network_.endpoints_mutex_);
    network_.watches_[address_].broken = std::move(broken);
  }

  void probe(const core::Peer& peer, uint32_t timeout_ms,
             std::function<void(StatusOr<core::PeerHealth>)> done) override {
    auto once = std::make_shared<Once<StatusOr<core::PeerHealth>>>(network_, std::move(done));
    network_.post([once] { once->answer(unavailable("no answer")); },
                  std::chrono::milliseconds(timeout_ms));
    network_.post([&network = network_, node = node_, from = address_, peer, once] {
      std::lock_guard lock(network.endpoints_mutex_);
      ports::PeerHandler* handler = network.reach(from, peer);
      if (network.is_cut(from, peer.address)) return;
      if (handler == nullptr) return once->answer(unavailable("nobody is there"));
      handler->on_probe({node, "", from}, [once](StatusOr<core::PeerHealth> health) {
        once->answer(std::move(health));
      });
    });
  }

  void send(const core::Peer& peer, std::string frame, uint32_t timeout_ms,
            std::function<void(core::Admission)> done) override {
    sent_ += frame.size();
    auto once = std::make_shared<Once<core::Admission>>(network_, std::move(done));
    network_.post([once] { once->answer(core::Admission::kUnreachable); },
                  std::chrono::milliseconds(timeout_ms));
    network_.post([&network = network_, node = node_, from = address_, peer,
                   frame = std::move(frame), once]() mutable {
      std::lock_guard lock(network.endpoints_mutex_);
      ports::PeerHandler* handler = network.reach(from, peer);
      if (network.is_cut(from, peer.address)) return;
      if (handler == nullptr) return once->answer(core::Admission::kUnreachable);
      handler->on_frame({node, "", from}, std::move(frame),
                        [once](core::Admission admission) { once->answer(admission); });
    });
  }
  uint64_t bytes_sent() override { return sent_; }

 private:
  ProcessNetwork& network_;
  const NodeId node_;
  const std::string address_;
  std::atomic<uint64_t> sent_{0};
};

// Asked on the asker's own thread.
class ProcessNetwork::DonorSide final : public ports::DonorLinks {
 public:
  DonorSide(ProcessNetwork& network, std::string address) : network_(network), address_(std::move(address)) {}
  std::unique_ptr<ports::BlobLink> connect(const core::Peer& donor) override { return std::make_unique<Link>(*this, donor); }

 private:
  class Link final : public ports::BlobLink {
   public:
    Link(DonorSide& side, core::Peer donor) : side_(side), donor_(std::move(donor)) {}
    StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override { return failed_precondition("a donor takes nothing"); }
    StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
      std::vector<std::string> contents;
      std::lock_guard lock(side_.network_.endpoints_mutex_);
      const auto handler = side_.network_.peers_.find(donor_.address);
      if (handler == side_.network_.peers_.end() || handler->second == nullptr ||
          side_.network_.is_cut(side_.address_, donor_.address)) {
        return unavailable("nobody is at {}", donor_.address);
      }
      for (const Digest& digest : digests) {
        TESSERA_ASSIGN_OR_RETURN(std::string content, handler->second->donate(digest));
        contents.push_back(std::move(content));
      }
      return contents;
    }

   private:
    DonorSide& side_;
    const core::Peer donor_;
  };

  ProcessNetwork& network_;
  const std::string address_;
};

std::unique_ptr<ports::DonorLinks> ProcessNetwork::donor_links(const std::string& address) {
  return std::make_unique<DonorSide>(*this, address);
}

std::unique_ptr<ports::PeerLink> ProcessNetwork::peer_link(const NodeId& node,
                                                           const std::string& address) {
  return std::make_unique<PeerSide>(*this, node, address);
}

std::unique_ptr<ProcessNetwork::MinerLink> ProcessNetwork::orchestrator_link(const NodeId& node) {
  return std::make_unique<MinerLink>(*this, node);
}

void ProcessNetwork::MinerLink::register_miner(
    core::Registration registration, std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  auto once = std::make_shared<Once<StatusOr<core::RegisterAnswer>>>(network_, std::move(done));
  network_.post([once] { once->answer(unavailable("no answer")); }, kCallLimit);
  if (dead_) return once->answer(invalid_argument("killed"));
  network_.post([&network = network_, node = node_, session = session_,
                 registration = std::move(registration), once]() mutable {
    std::lock_guard lock(network.endpoints_mutex_);
    if (network.orchestrator_ == nullptr) return once->answer(unavailable("nobody is there"));
    network.orchestrator_->on_register(
        {node, "", "here"}, std::move(registration),
        [once, session](StatusOr<core::RegisterAnswer> answer) {
          if (answer.ok() && answer->refusal == core::RegisterRefusal::kNone) {
            std::lock_guard session_lock(session->mutex);
            session->value = answer->session;
          }
          once->answer(std::move(answer));
        });
  });
}

void ProcessNetwork::MinerLink::sync(core::SyncRequest request,
                                     std::function<void(StatusOr<core::SyncAnswer>)> done) {
  auto once = std::make_shared<Once<StatusOr<core::SyncAnswer>>>(network_, std::move(done));
  network_.post([once] { once->answer(unavailable("no answer")); }, kCallLimit);
  if (dead_) {
    core::SyncAnswer leave;
    leave.leave = true;
    return once->answer(std::move(leave));
  }
  std::string session;
  {
    std::lock_guard lock(session_->mutex);
    session = session_->value;
  }
  network_.post(
      [&network = network_, node = node_, session, request = std::move(request), once]() mutable {
        std::lock_guard lock(network.endpoints_mutex_);
        if (network.orchestrator_ == nullptr) return once->answer(unavailable("nobody is there"));
        network.orchestrator_->on_sync(
            {node, session, "here"}, std::move(request),
            [once](StatusOr<core::SyncAnswer> answer) { once->answer(std::move(answer)); });
      });
}

}  // namespace tessera::test
