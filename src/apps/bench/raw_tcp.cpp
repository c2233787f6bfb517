#include "apps/bench/raw_tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tessera::apps {
namespace {

constexpr uint64_t kMaxFrameBytes = uint64_t{1} << 30;

Status system_error(const char* what) {
  return internal_error("{}: {}", what, std::strerror(errno));
}

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

StatusOr<int> new_socket() {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return system_error("socket");
  const int yes = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  return descriptor;
}

}  // namespace

TcpSocket::~TcpSocket() {
  if (descriptor_ >= 0) close(descriptor_);
}

TcpSocket::TcpSocket(TcpSocket&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

StatusOr<TcpSocket> TcpSocket::listening() {
  TESSERA_ASSIGN_OR_RETURN(const int descriptor, new_socket());
  TcpSocket result(descriptor);
  const sockaddr_in address = loopback(0);
  if (bind(result.descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(result.descriptor_, 1) != 0) {
    return system_error("listening on 127.0.0.1");
  }
  return result;
}

StatusOr<TcpSocket> TcpSocket::connected_to(int port) {
  TESSERA_ASSIGN_OR_RETURN(const int descriptor, new_socket());
  TcpSocket result(descriptor);
  const sockaddr_in address = loopback(port);
  if (connect(result.descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
      0) {
    return system_error("connecting to 127.0.0.1");
  }
  return result;
}

StatusOr<TcpSocket> TcpSocket::accepted() const {
  TcpSocket result(accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC));
  if (result.descriptor_ < 0) return system_error("accept");
  const int yes = 1;
  setsockopt(result.descriptor_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  return result;
}

int TcpSocket::port() const {
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  getsockname(descriptor_, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.sin_port);
}

Status TcpSocket::send_all(const void* data, size_t size) const {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = send(descriptor_, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return system_error("send");
    at += sent;
    size -= static_cast<size_t>(sent);
  }
  return ok_status();
}

StatusOr<bool> TcpSocket::receive_all(void* data, size_t size) const {
  char* at = static_cast<char*>(data);
  const size_t wanted = size;
  while (size > 0) {
    const ssize_t received = recv(descriptor_, at, size, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0) return system_error("recv");
    if (received == 0 && size == wanted) return false;
    if (received == 0) return unavailable("the other side closed within a frame");
    at += received;
    size -= static_cast<size_t>(received);
  }
  return true;
}

Status serve_tcp_frames(const TcpSocket& listener) {
  TESSERA_ASSIGN_OR_RETURN(const TcpSocket socket, listener.accepted());
  std::string frame;
  while (true) {
    uint64_t size = 0;
    TESSERA_ASSIGN_OR_RETURN(const bool more, socket.receive_all(&size, sizeof(size)));
    if (!more) return ok_status();
    if (size > kMaxFrameBytes) return invalid_argument("a frame of {} bytes", size);
    if (frame.size() < size) frame.resize(size);
    TESSERA_ASSIGN_OR_RETURN(const bool whole, socket.receive_all(frame.data(), size));
    if (!whole && size > 0) return unavailable("the other side closed within a frame");
    const char answer = 1;
    TESSERA_RETURN_IF_ERROR(socket.send_all(&answer, 1));
  }
}

Status send_tcp_frames(const TcpSocket& socket, const std::vector<std::string>& frames,
                       size_t window) {
  size_t answered = 0;
  const auto await_one = [&]() -> Status {
    char answer = 0;
    TESSERA_ASSIGN_OR_RETURN(const bool came, socket.receive_all(&answer, 1));
    if (!came) return unavailable("the receiver closed");
    ++answered;
    return ok_status();
  };
  for (size_t sent = 0; sent < frames.size(); ++sent) {
    if (sent - answered >= window) TESSERA_RETURN_IF_ERROR(await_one());
    const uint64_t size = frames[sent].size();
    TESSERA_RETURN_IF_ERROR(socket.send_all(&size, sizeof(size)));
    TESSERA_RETURN_IF_ERROR(socket.send_all(frames[sent].data(), size));
  }
  while (answered < frames.size()) TESSERA_RETURN_IF_ERROR(await_one());
  return ok_status();
}

}  // namespace tessera::apps
