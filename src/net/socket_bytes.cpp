#include "net/socket_bytes.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

namespace tessera::net {
namespace {

constexpr TimeMs kScanIntervalMs = 200;
constexpr size_t kMaxRemotes = 8192;

struct FolderCloser {
  void operator()(DIR* folder) const { closedir(folder); }
};

std::string key_of(const void* address, size_t size, uint16_t port) {
  std::string key(static_cast<const char*>(address), size);
  key.append(reinterpret_cast<const char*>(&port), sizeof(port));
  return key;
}

// An IPv4 address inside an IPv6 socket (::ffff:a.b.c.d) counts as the IPv4 address it is.
std::optional<std::string> key_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return key_of(&v4.sin_addr, sizeof(v4.sin_addr), ntohs(v4.sin_port));
  }
  if (address.ss_family != AF_INET6) return std::nullopt;
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    return key_of(v6.sin6_addr.s6_addr + 12, sizeof(in_addr), ntohs(v6.sin6_port));
  }
  return key_of(&v6.sin6_addr, sizeof(v6.sin6_addr), ntohs(v6.sin6_port));
}

std::optional<std::string> key_of_name(const std::string& remote) {
  const bool is_v4 = remote.starts_with("ipv4:");
  const size_t colon = remote.rfind(':');
  if ((!is_v4 && !remote.starts_with("ipv6:")) || colon < 5) return std::nullopt;
  std::string host = remote.substr(5, colon - 5);
  uint16_t port = 0;
  const char* const end = remote.data() + remote.size();
  if (std::from_chars(remote.data() + colon + 1, end, port).ptr != end) return std::nullopt;
  for (const char* bracket : {"%5B", "%5D", "[", "]"}) {
    if (const size_t at = host.find(bracket); at != std::string::npos) {
      host.erase(at, std::strlen(bracket));
    }
  }
  host.resize(std::min(host.find('%'),
                       host.size()));  // a scope ("fe80::1%25eth0") is not part of the address
  unsigned char raw[sizeof(in6_addr)];
  if (inet_pton(is_v4 ? AF_INET : AF_INET6, host.c_str(), raw) != 1) return std::nullopt;
  return key_of(raw, is_v4 ? sizeof(in_addr) : sizeof(in6_addr), port);
}

// The inode in "socket:[12345]", which is what the descriptor's link says of a socket.
std::optional<uint64_t> socket_inode(int folder, const char* descriptor) {
  char target[64];
  const ssize_t size = readlinkat(folder, descriptor, target, sizeof(target) - 1);
  if (size <= 0) return std::nullopt;
  target[size] = '\0';
  constexpr char kPrefix[] = "socket:[";
  if (std::strncmp(target, kPrefix, sizeof(kPrefix) - 1) != 0) return std::nullopt;
  return std::strtoull(target + sizeof(kPrefix) - 1, nullptr, 10);
}

// Payload bytes of the connection, retransmissions included where the kernel tells (Linux 4.19),
// else acknowledged ones.
std::optional<uint64_t> sent_bytes(int descriptor) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  const auto told = [size](size_t offset) { return size >= offset + sizeof(uint64_t); };
  if (told(offsetof(tcp_info, tcpi_bytes_sent))) return info.tcpi_bytes_sent;
  if (told(offsetof(tcp_info, tcpi_bytes_acked))) return info.tcpi_bytes_acked;
  return std::nullopt;
}

}  // namespace

void SocketByteCounter::watch(const std::string& remote) {
  if (names_.size() >= kMaxRemotes || !names_.insert(remote).second) return;
  if (auto key = key_of_name(remote)) remotes_.insert(*std::move(key));
}

uint64_t SocketByteCounter::total(TimeMs now_ms) {
  if (!scanned_ || now_ms - last_scan_ms_ >= kScanIntervalMs) {
    scanned_ = true;
    last_scan_ms_ = now_ms;
    scan();
  }
  uint64_t sum = closed_bytes_;
  for (const auto& [inode, bytes] : open_) sum += bytes;
  return sum;
}

void SocketByteCounter::scan() {
  const std::unique_ptr<DIR, FolderCloser> folder(opendir("/proc/self/fd"));
  if (folder == nullptr) return;
  std::map<uint64_t, uint64_t> found;
  while (const dirent* entry = readdir(folder.get())) {
    const auto inode = socket_inode(dirfd(folder.get()), entry->d_name);
    if (!inode) continue;
    // Another thread may close the descriptor meanwhile, and a new one take its number: these calls
    // only read.
    const int descriptor = std::atoi(entry->d_name);
    sockaddr_storage remote{};
    socklen_t size = sizeof(remote);
    if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&remote), &size) != 0) continue;
    const auto key = key_of(remote);
    if (!key || !remotes_.contains(*key)) continue;
    if (const auto bytes = sent_bytes(descriptor)) found[*inode] = *bytes;
  }
  for (const auto& [inode, bytes] : open_) {
    const auto still = found.find(inode);
    const bool inode_reused = still != found.end() && still->second < bytes;
    if (still == found.end() || inode_reused) closed_bytes_ += bytes;
  }
  open_ = std::move(found);
}

}  // namespace tessera::net
