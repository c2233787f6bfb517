// Where torch's exceptions end: they become Status.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "tessera/base/status.h"

namespace tessera::model {

// A Status on its way through code whose failures are exceptions.
class StatusException final : public std::exception {
 public:
  explicit StatusException(Status status) : status_(std::move(status)), text_(message_of(status_)) {}
  const Status& status() const { return status_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  const Status status_;
  const std::string text_;
};
inline void throw_if_error(const Status& status) {
  if (!status.ok()) throw StatusException(status);
}

// To be called within a catch block. A StatusException is its status, out of
// memory RESOURCE_EXHAUSTED, all else INTERNAL. `what`
// was being done.
Status status_of_current_exception(const char* what);

// Of the cudaError_t that a launch of kernels/ returned.
inline Status check_launch(int code, const char* kernel) {
  if (code == 0) return ok_status();
  return internal_error("{} could not be launched (CUDA error {}); restart the process", kernel,
                        code);
}

// function(), which returns a Status or a StatusOr; a Status instead of any exception.
template <class Function>
auto guarded(const char* what, Function&& function) -> decltype(function()) {
  try {
    return function();
  } catch (...) {
    return status_of_current_exception(what);
  }
}

}  // namespace tessera::model
