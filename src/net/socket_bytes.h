// Bytes this process has sent to given addresses, as the kernel counts them per TCP connection.
//
// Finds the connections by their remote address among the process's own sockets, so it needs
// nothing from gRPC but the address. What a connection sent between the last look and its end is
// not counted. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "tessera/base/clock.h"

namespace tessera::net {

class SocketByteCounter {
 public:
  // `remote` as gRPC names it: "ipv4:10.0.0.1:7700", "ipv6:%5B::1%5D:7700". Others, and addresses
  // over the limit, are left out.
  void watch(const std::string& remote);
  // Sum over connections open and closed; never shrinks.
  uint64_t total(TimeMs now_ms);

 private:
  void scan();

  std::set<std::string> names_;        // as given to watch(), to parse each once
  std::set<std::string> remotes_;      // canonical address bytes and port
  std::map<uint64_t, uint64_t> open_;  // sent bytes by inode of the socket
  uint64_t closed_bytes_ = 0;
  bool scanned_ = false;
  TimeMs last_scan_ms_ = 0;
};

}  // namespace tessera::net
