#include "net/listener.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "net/channel.h"

namespace tessera::net {
namespace {

constexpr int kMaxStreamsPerConnection = 256;
constexpr int kMinPingIntervalMs = 5000;

// gRPC only says that it failed: try the same and report the system's reason.
std::string why_not_listening(const HostPort& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int problem =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (problem != 0) {
    return fmt::format(
        "the host is unknown here: {}; listen on an address of this machine, or "
        "0.0.0.0 for all",
        gai_strerror(problem));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const int descriptor = socket(entry->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) continue;
    const int yes = 1;
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    int reason = 0;
    if (bind(descriptor, entry->ai_addr, entry->ai_addrlen) != 0 || ::listen(descriptor, 1) != 0) {
      reason = errno;
    }
    close(descriptor);
    switch (reason) {
      case 0:
        continue;
      case EADDRINUSE:
        return "address already in use; stop the program that listens there, or choose another "
               "port (0 picks a free one)";
      case EADDRNOTAVAIL:
        return "this machine has no such address; listen on one it has, or 0.0.0.0 for all";
      case EACCES:
        return "permission denied; choose a port of 1024 or above";
      default:
        return std::strerror(reason);
    }
  }
  return "gRPC could not listen there, but the system now could; try again";
}

}  // namespace

StatusOr<std::unique_ptr<Listener>> Listener::start(const std::string& listen,
                                                    const std::vector<grpc::Service*>& services,
                                                    size_t max_message_bytes, size_t memory_bytes) {
  TESSERA_ASSIGN_OR_RETURN(HostPort address, parse_address(listen));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.text(), grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_message_bytes));
  builder.SetMaxSendMessageSize(static_cast<int>(max_message_bytes));
  for (const auto& [name, value] : bulk_settings()) builder.AddChannelArgument(name, value);
  // Two programs on one port would each get a part of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  // Clients ping idle connections to notice a dead path; that is no abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  grpc::ResourceQuota quota("tessera server");
  quota.Resize(memory_bytes);
  builder.SetResourceQuota(quota);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    server.reset();
    return unavailable("{}: can't listen: {}", address.text(), why_not_listening(address));
  }
  address.port = port;
  return std::unique_ptr<Listener>(new Listener(std::move(server), std::move(address)));
}

Listener::~Listener() { shutdown(0); }

void Listener::shutdown(uint32_t deadline_ms) {
  if (!std::exchange(running_, false)) return;
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
  server_->Wait();
}

}  // namespace tessera::net
