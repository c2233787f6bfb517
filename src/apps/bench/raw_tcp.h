// The opponent of the peer link: the same frames over one plain TCP socket, as fast as the system
// can. A frame is its size (8 bytes) and its bytes; the answer is one byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

// Both sides: blocking calls, errors as statuses. Not thread-safe.
class TcpSocket {
 public:
  explicit TcpSocket(int descriptor = -1) : descriptor_(descriptor) {}
  ~TcpSocket();
  TcpSocket(TcpSocket&& other) noexcept;
  TcpSocket& operator=(TcpSocket&&) = delete;

  // On 127.0.0.1, on a free port.
  static StatusOr<TcpSocket> listening();
  static StatusOr<TcpSocket> connected_to(int port);
  StatusOr<TcpSocket> accepted() const;
  int port() const;

  Status send_all(const void* data, size_t size) const;
  // False if the other side closed before the first byte.
  StatusOr<bool> receive_all(void* data, size_t size) const;

 private:
  int descriptor_;
};

// Answers frames until the other side closes.
Status serve_tcp_frames(const TcpSocket& listener);

// Sends the frames, at most `window` without an answer at any time.
Status send_tcp_frames(const TcpSocket& socket, const std::vector<std::string>& frames,
                       size_t window);

}  // namespace tessera::apps
