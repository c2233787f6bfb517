#include "apps/bench/orchestrator_process.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string_view>

#include "tessera/base/archive.h"

extern char** environ;

namespace tessera::apps {
namespace {

constexpr int kSocketOfChild = 3;
constexpr uint32_t kMostBytes = 4 << 20;       // of a message
constexpr uint32_t kServes = 0xffffffff;       // in place of a miner's number: the process serves now
constexpr int kSocketBytes = 16 << 20;

// What the load sends of a registration or report.
struct CallMessage {
  uint32_t number = 0;
  std::optional<core::Registration> registration;
  MinerIndex miner = kNoMiner;
  uint64_t incarnation = 0;
  core::MinerStatus status;
  std::vector<core::Receipt> receipts;
  uint64_t lease_request = 0;
  uint32_t leases_wanted = 0;
  std::optional<core::MergeApplied> applied;
  std::optional<Digest> published_state;
  uint64_t peers_version = 0;
  template <class A>
  void fields(A& a) {
    a("number", number)("registration", registration)("miner", miner)("incarnation", incarnation)("status", status)(
        "receipts", receipts)("lease_request", lease_request)("leases_wanted", leases_wanted)("applied", applied)(
        "published_state", published_state)("peers_version", peers_version);
  }
};

// What it looks at of an answer.
struct AnswerMessage {
  uint32_t number = 0;
  int32_t code = 0;  // of the status; its text if it is an error
  std::string text;
  double seconds = 0;    // until it served, with kServes
  core::RegisterRefusal refusal = core::RegisterRefusal::kNone;
  MinerIndex miner = kNoMiner;
  std::string run_id;
  bool known = true;
  uint64_t receipts_acknowledged = 0;
  uint64_t lease_request = 0;
  std::vector<core::Lease> leases;
  uint64_t peers_version = 0;
  bool new_peers = false;
  std::optional<core::Assignment> assignment;
  bool publish_state = false;
  template <class A>
  void fields(A& a) {
    a("number", number)("code", code)("text", text)("seconds", seconds)("refusal", refusal)("miner", miner)("run_id", run_id)("known", known)(
        "receipts_acknowledged", receipts_acknowledged)("lease_request", lease_request)("leases", leases)(
        "peers_version", peers_version)("new_peers", new_peers)("assignment", assignment)("publish_state", publish_state);
  }
};

bool write_all(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool read_all(int socket, char* to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = ::read(socket, to, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

std::string framed(std::string message) {
  ByteWriter writer;
  writer.number(static_cast<uint32_t>(message.size()));
  return writer.take() + message;
}

bool read_message(int socket, std::string* message) {
  char length[sizeof(uint32_t)];
  if (!read_all(socket, length, sizeof(length))) return false;
  const uint32_t bytes = ByteReader(std::string_view(length, sizeof(length))).number<uint32_t>();
  if (bytes > kMostBytes) return false;
  message->resize(bytes);
  return read_all(socket, message->data(), bytes);
}

AnswerMessage answer_to(uint32_t number, const Status& status) {
  AnswerMessage message;
  message.number = number;
  message.code = static_cast<int32_t>(status.code());
  message.text = message_of(status);
  return message;
}

core::SyncRequest report_of(CallMessage call) {
  core::SyncRequest request;
  request.miner = call.miner;
  request.incarnation = call.incarnation;
  request.status = call.status;
  request.receipts = std::move(call.receipts);
  request.lease_request = call.lease_request;
  request.leases_wanted = call.leases_wanted;
  request.applied = call.applied;
  request.published_state = call.published_state;
  request.peers_version = call.peers_version;
  return request;
}

}  // namespace

Status serve_orchestrator(const HostOptions& options, int socket) {
  const auto begin = std::chrono::steady_clock::now();
  pin_this_thread(options.core, false);
  TESSERA_ASSIGN_OR_RETURN(const auto journal, open_bench_journal(options));
  TESSERA_ASSIGN_OR_RETURN(const auto node, open_bench_node(options, *journal));
  std::atomic<bool> stop{false}, abandon{false};
  std::jthread control([&] { (void)node->run(stop, abandon); });
  std::mutex writing;
  const auto answer = [&](const AnswerMessage& message) {
    const std::string bytes = framed(encode(message));
    std::lock_guard lock(writing);
    (void)write_all(socket, bytes);  // the reader notices that the other side is gone
  };
  {
    LocalTarget target(options, *node);
    AnswerMessage serves = answer_to(kServes, ok_status());
    serves.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    answer(serves);
    std::string bytes;
    while (read_message(socket, &bytes)) {
      CallMessage call;
      if (!decode(bytes, &call) || call.number >= options.load.miners) return data_loss("a call can't be read");
      const uint32_t number = call.number;
      if (call.registration) {
        target.register_miner(number, *call.registration, [&answer, number](StatusOr<core::RegisterAnswer> done) {
          AnswerMessage message = answer_to(number, done.status());
          if (done.ok()) message.refusal = done->refusal, message.miner = done->miner, message.run_id = done->run_id;
          answer(message);
        });
        continue;
      }
      target.sync(number, report_of(std::move(call)), [&answer, number](StatusOr<core::SyncAnswer> done) {
        AnswerMessage message = answer_to(number, done.status());
        if (done.ok()) {
          message.known = done->known;
          message.receipts_acknowledged = done->receipts_acknowledged;
          message.lease_request = done->lease_request;
          message.leases = std::move(done->leases);
          message.peers_version = done->peers_version;
          message.new_peers = done->peers.has_value();
          message.assignment = done->assignment;
          message.publish_state = done->publish_state;
        }
        answer(message);
      });
    }
  }
  abandon = true;
  return ok_status();
}

StatusOr<std::unique_ptr<OrchestratorProcess>> OrchestratorProcess::create(const HostOptions& options) {
  pin_this_thread(options.core, true);
  return std::unique_ptr<OrchestratorProcess>(new OrchestratorProcess(options));
}

Status OrchestratorProcess::start() {
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) return internal_error("socketpair: {}", std::strerror(errno));
  for (const int socket : sockets) (void)::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof(kSocketBytes));
  std::vector<std::string> words = {"tessera-bench", "orchestrator", "--serve", std::to_string(kSocketOfChild), "--directory",
                                    options_.directory, "--miners", std::to_string(options_.load.miners), "--stages",
                                    std::to_string(options_.load.stages), "--core=" + std::to_string(options_.core),
                                    "--snapshot-events", std::to_string(options_.snapshot_events)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], kSocketOfChild);
  const int error = ::posix_spawn(&process_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(sockets[1]);
  if (error != 0) {
    ::close(sockets[0]);
    process_ = -1;
    return internal_error("starting the orchestrator's process: {}", std::strerror(error));
  }
  socket_ = sockets[0];
  receiver_ = std::jthread([this, socket = socket_] { receive(socket); });
  return ok_status();
}

std::optional<double> OrchestratorProcess::serves_after() const {
  std::lock_guard lock(mutex_);
  return serves_after_;
}

void OrchestratorProcess::kill() {
  if (process_ < 0) return;
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
  process_ = -1;
  receiver_.join();
  ::close(socket_);
  std::lock_guard lock(mutex_);
  serves_after_.reset();
}

void OrchestratorProcess::register_miner(uint32_t number, core::Registration registration,
                                         std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  CallMessage call;
  call.number = number;
  call.registration = std::move(registration);
  if (!send(number, {.registered = done, .synced = {}}, encode(call))) done(unavailable("the orchestrator does not answer"));
}

void OrchestratorProcess::sync(uint32_t number, core::SyncRequest request,
                               std::function<void(StatusOr<core::SyncAnswer>)> done) {
  CallMessage call;
  call.number = number;
  call.miner = request.miner;
  call.incarnation = request.incarnation;
  call.status = request.status;
  call.receipts = std::move(request.receipts);
  call.lease_request = request.lease_request;
  call.leases_wanted = request.leases_wanted;
  call.applied = request.applied;
  call.published_state = request.published_state;
  call.peers_version = request.peers_version;
  if (!send(number, {.registered = {}, .synced = done}, encode(call))) done(unavailable("the orchestrator does not answer"));
}

bool OrchestratorProcess::send(uint32_t number, Pending pending, const std::string& bytes) {
  {
    std::lock_guard lock(mutex_);
    if (!serves_after_) return false;
    pending_[number] = std::move(pending);
  }
  (void)write_all(socket_, framed(bytes));  // a failure ends the receiver too, which answers
  return true;
}

OrchestratorProcess::Pending OrchestratorProcess::take(uint32_t number) {
  std::lock_guard lock(mutex_);
  return std::exchange(pending_[number], {});
}

void OrchestratorProcess::receive(int socket) {
  std::string bytes;
  while (read_message(socket, &bytes)) {
    AnswerMessage message;
    if (!decode(bytes, &message)) break;
    if (message.number == kServes) {
      std::lock_guard lock(mutex_);
      serves_after_ = message.seconds;
      continue;
    }
    if (message.number >= pending_.size()) break;
    const Pending pending = take(message.number);
    const Status status(static_cast<absl::StatusCode>(message.code), message.text);
    if (pending.registered) {
      if (!status.ok()) {
        pending.registered(status);
        continue;
      }
      core::RegisterAnswer answer;
      answer.refusal = message.refusal;
      answer.miner = message.miner;
      answer.run_id = message.run_id;
      pending.registered(std::move(answer));
    } else if (pending.synced) {
      if (!status.ok()) {
        pending.synced(status);
        continue;
      }
      core::SyncAnswer answer;
      answer.known = message.known;
      answer.receipts_acknowledged = message.receipts_acknowledged;
      answer.lease_request = message.lease_request;
      answer.leases = std::move(message.leases);
      answer.peers_version = message.peers_version;
      if (message.new_peers) answer.peers.emplace();
      answer.assignment = message.assignment;
      answer.publish_state = message.publish_state;
      pending.synced(std::move(answer));
    }
  }
  {
    std::lock_guard lock(mutex_);
    serves_after_.reset();  // nothing more is sent to it
  }
  for (uint32_t number = 0; number < pending_.size(); ++number) {
    const Pending pending = take(number);
    if (pending.registered) pending.registered(unavailable("the orchestrator ended"));
    if (pending.synced) pending.synced(unavailable("the orchestrator ended"));
  }
}

}  // namespace tessera::apps
