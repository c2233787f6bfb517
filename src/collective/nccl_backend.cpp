#include <c10/util/Exception.h>

#include "collective/backends.h"

#ifdef TESSERA_WITH_CUDA
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace tessera::collective {

c10::intrusive_ptr<c10d::Backend> make_nccl_backend([[maybe_unused]] const c10::intrusive_ptr<c10d::Store>& store,
                                                    [[maybe_unused]] const WorkerPlace& place) {
#ifdef TESSERA_WITH_CUDA
  const auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = place.timeout;
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, place.rank, place.size, options);
  backend->eagerConnectSingleDevice(place.device);
  return backend;
#else
  TORCH_CHECK(false, "this program was built without CUDA");
#endif
}

}  // namespace tessera::collective
