// Where torch's exceptions end: they become Status.
#pragma once

#include "tessera/base/status.h"

namespace tessera::model {

// To be called within a catch block. Out of memory is RESOURCE_EXHAUSTED, all else INTERNAL. `what`
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
