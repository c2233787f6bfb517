// A gRPC server on one address.
#pragma once

#include <grpcpp/impl/service_type.h>
#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "net/wire.h"
#include "tessera/base/status.h"

namespace tessera::net {

// Owned and shut down by one thread.
class Listener {
 public:
  // Services must outlive the listener. Says why when it can't listen. Memory that gRPC holds for
  // messages under way is kept to about `memory_bytes`.
  static StatusOr<std::unique_ptr<Listener>> start(const std::string& listen,
                                                   const std::vector<grpc::Service*>& services,
                                                   size_t max_message_bytes, size_t memory_bytes);
  ~Listener();
  int port() const { return address_.port; }
  std::string address() const { return address_.text(); }
  void shutdown(uint32_t deadline_ms);

 private:
  Listener(std::unique_ptr<grpc::Server> server, HostPort address)
      : server_(std::move(server)), address_(std::move(address)) {}
  std::unique_ptr<grpc::Server> server_;
  const HostPort address_;
  bool running_ = true;
};

}  // namespace tessera::net
