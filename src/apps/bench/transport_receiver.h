// The receiving process of tessera-bench transport: a peer server that accepts every frame at once,
// and the plain TCP receiver.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"

namespace tessera::apps {

inline const std::string kBenchRun = "tessera-bench";

// Ends the process when it is destroyed.
class TransportReceiver {
 public:
  // Forks, so it comes before the first thread of this process.
  static StatusOr<std::unique_ptr<TransportReceiver>> start();
  ~TransportReceiver();
  TransportReceiver(const TransportReceiver&) = delete;
  TransportReceiver& operator=(const TransportReceiver&) = delete;

  static KeyPair key();
  const std::string& peer_address() const { return peer_address_; }
  int tcp_port() const { return tcp_port_; }

 private:
  TransportReceiver(pid_t process, int lifeline) : process_(process), lifeline_(lifeline) {}
  const pid_t process_;
  const int lifeline_;  // closed: the receiver ends
  std::string peer_address_;
  int tcp_port_ = 0;
};

}  // namespace tessera::apps
