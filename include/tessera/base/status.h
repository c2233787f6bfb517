// Errors: absl::Status for what can fail in operation, TESSERA_CHECK for what can only be a bug.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

namespace tessera {

using Status = absl::Status;
template <class T>
using StatusOr = absl::StatusOr<T>;

inline Status ok_status() { return absl::OkStatus(); }

template <class... Args>
Status error(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
Status invalid_argument(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}
template <class... Args>
Status not_found(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kNotFound, format, std::forward<Args>(args)...);
}
template <class... Args>
Status data_loss(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kDataLoss, format, std::forward<Args>(args)...);
}
template <class... Args>
Status unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kUnavailable, format, std::forward<Args>(args)...);
}
template <class... Args>
Status failed_precondition(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kFailedPrecondition, format, std::forward<Args>(args)...);
}
template <class... Args>
Status internal_error(fmt::format_string<Args...> format, Args&&... args) {
  return error(absl::StatusCode::kInternal, format, std::forward<Args>(args)...);
}

// The message of a status as a std::string (absl::string_view is not std::string_view here).
inline std::string message_of(const Status& status) {
  return std::string(status.message().data(), status.message().size());
}

// The same error with `prefix: ` in front of its message.
inline Status annotate(const Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  return Status(status.code(), fmt::format("{}: {}", prefix, message_of(status)));
}

}  // namespace tessera

#define TESSERA_CHECK(condition)                                                              \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);      \
      std::abort();                                                                           \
    }                                                                                         \
  } while (false)

#define TESSERA_CONCAT_INNER(a, b) a##b
#define TESSERA_CONCAT(a, b) TESSERA_CONCAT_INNER(a, b)

#define TESSERA_RETURN_IF_ERROR(expression)                        \
  do {                                                             \
    if (::tessera::Status status_ = (expression); !status_.ok()) { \
      return status_;                                              \
    }                                                              \
  } while (false)

#define TESSERA_ASSIGN_OR_RETURN(target, expression) \
  TESSERA_ASSIGN_OR_RETURN_INNER(TESSERA_CONCAT(result_, __LINE__), target, expression)
#define TESSERA_ASSIGN_OR_RETURN_INNER(result, target, expression) \
  auto result = (expression);                                      \
  if (!result.ok()) return result.status();                        \
  target = *std::move(result)
