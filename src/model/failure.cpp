#include "model/failure.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>

namespace tessera::model {
namespace {

Status out_of_memory(const char* what, std::string_view detail) {
  return error(
      absl::StatusCode::kResourceExhausted,
      "{}: out of memory; lower training.microbatch_size or model.context, give this stage fewer "
      "layers "
      "(pipeline.stages, pipeline.stage_layers), or use a device with more memory. Reported: {}",
      what, detail);
}

bool is_out_of_memory(std::string_view message) {
  for (std::string_view sign :
       {"out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED"}) {
    if (message.find(sign) != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace

Status status_of_current_exception(const char* what) {
  try {
    throw;
  } catch (const StatusException& exception) {
    return exception.status();
  } catch (const c10::Error& exception) {
    const std::string message = exception.what_without_backtrace();
    if (is_out_of_memory(message)) return out_of_memory(what, message);
    return internal_error("{}: torch failed: {}", what, message);
  } catch (const std::bad_alloc&) {
    return out_of_memory(what, "the host's memory is full");
  } catch (const std::exception& exception) {
    if (is_out_of_memory(exception.what())) return out_of_memory(what, exception.what());
    return internal_error("{}: {}", what, exception.what());
  } catch (...) {
    return internal_error("{}: an exception of unknown type", what);
  }
}

}  // namespace tessera::model
