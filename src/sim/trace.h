// What happened, one line an event, hashed as it goes and written to a file if there is one. The
// same scenario and seed give the same bytes.
#pragma once

#include <fmt/format.h>

#include <fstream>
#include <memory>
#include <string>

#include "event_queue.h"
#include "tessera/base/crypto.h"
#include "tessera/base/status.h"

namespace tessera::sim {

class Trace {
 public:
  explicit Trace(const EventQueue& queue) : queue_(queue) {}

  Status write_to(const std::string& path) {
    file_.open(path, std::ios::binary | std::ios::trunc);
    return file_ ? ok_status() : invalid_argument("the trace can't be written to {}", path);
  }

  template <class... T>
  void line(fmt::format_string<T...> format, T&&... values) {
    fmt::format_to(std::back_inserter(buffer_), "{} ", queue_.now_us() - kBeginUs);
    fmt::format_to(std::back_inserter(buffer_), format, std::forward<T>(values)...);
    buffer_.push_back('\n');
    ++lines_;
    if (buffer_.size() >= kFlushBytes) flush();
  }
  uint64_t lines() const { return lines_; }

  // No line after it. The hexadecimal SHA-256 of all lines; an error if the file did not take them.
  StatusOr<std::string> finish() {
    flush();
    if (file_.is_open() && !file_.flush())
      return data_loss("the trace could not be written; is the disk full?");
    return to_hex(hasher_.finish());
  }

 private:
  static constexpr size_t kFlushBytes = 1u << 16;

  void flush() {
    const std::string_view bytes(buffer_.data(), buffer_.size());
    hasher_.update(bytes);
    if (file_.is_open()) file_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    buffer_.clear();
  }

  const EventQueue& queue_;
  fmt::memory_buffer buffer_;
  Sha256 hasher_;
  std::ofstream file_;
  uint64_t lines_ = 0;
};

}  // namespace tessera::sim
