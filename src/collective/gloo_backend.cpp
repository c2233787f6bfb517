#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "collective/backends.h"

namespace tessera::collective {

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store, const WorkerPlace& place) {
  const auto options = c10d::ProcessGroupGloo::Options::create(place.timeout);
  // All workers are in this process.
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, place.rank, place.size, options);
}

}  // namespace tessera::collective
