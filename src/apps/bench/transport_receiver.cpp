#include "apps/bench/transport_receiver.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>

#include "apps/bench/raw_tcp.h"
#include "tessera/net/server.h"

namespace tessera::apps {
namespace {

struct Addresses {
  char peer[64] = {};
  int tcp_port = 0;
};

class AcceptingPeer final : public ports::PeerHandler {
 public:
  void on_frame(const ports::Caller&, std::string,
                std::function<void(core::Admission)> done) override {
    done(core::Admission::kAccepted);
  }
  void on_probe(const ports::Caller&,
                std::function<void(StatusOr<core::PeerHealth>)> done) override {
    done(core::PeerHealth{});
  }
};

// The whole life of the receiving process.
Status receive(int lifeline, int out) {
  AcceptingPeer peer;
  TESSERA_ASSIGN_OR_RETURN(
      const auto server,
      net::PeerServer::start({.listen = "127.0.0.1:0", .key = TransportReceiver::key()}, &peer));
  server->set_run(kBenchRun);
  TESSERA_ASSIGN_OR_RETURN(const TcpSocket listener, TcpSocket::listening());
  Addresses addresses;
  std::snprintf(addresses.peer, sizeof(addresses.peer), "%s", server->address().c_str());
  addresses.tcp_port = listener.port();
  if (write(out, &addresses, sizeof(addresses)) != sizeof(addresses)) {
    return internal_error("telling the addresses: {}", std::strerror(errno));
  }
  std::thread([&] {
    const Status status = serve_tcp_frames(listener);
    if (!status.ok()) std::fprintf(stderr, "tcp receiver: %s\n", message_of(status).c_str());
  }).detach();
  char end = 0;
  while (read(lifeline, &end, 1) > 0) {
  }
  server->shutdown();
  return ok_status();
}

}  // namespace

KeyPair TransportReceiver::key() { return KeyPair::from_seed(std::string(32, 'r')); }

StatusOr<std::unique_ptr<TransportReceiver>> TransportReceiver::start() {
  int lifeline[2];
  int answer[2];
  if (pipe(lifeline) != 0 || pipe(answer) != 0) {
    return internal_error("pipe: {}", std::strerror(errno));
  }
  const pid_t process = fork();
  if (process < 0) return internal_error("fork: {}", std::strerror(errno));
  if (process == 0) {
    close(lifeline[1]);
    close(answer[0]);
    const Status status = receive(lifeline[0], answer[1]);
    if (!status.ok()) std::fprintf(stderr, "receiver: %s\n", message_of(status).c_str());
    std::fflush(stderr);
    _exit(status.ok() ? 0 : 1);
  }
  close(lifeline[0]);
  close(answer[1]);
  std::unique_ptr<TransportReceiver> receiver(new TransportReceiver(process, lifeline[1]));
  Addresses addresses;
  const ssize_t size = read(answer[0], &addresses, sizeof(addresses));
  close(answer[0]);
  if (size != sizeof(addresses)) return unavailable("the receiving process ended");
  addresses.peer[sizeof(addresses.peer) - 1] = '\0';
  receiver->peer_address_ = addresses.peer;
  receiver->tcp_port_ = addresses.tcp_port;
  return receiver;
}

TransportReceiver::~TransportReceiver() {
  close(lifeline_);
  waitpid(process_, nullptr, 0);
}

}  // namespace tessera::apps
