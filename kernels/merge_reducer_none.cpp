// In a build without CUDA.
#include "tessera/kernels/merge_reducer.h"

namespace tessera::kernels {

StatusOr<std::unique_ptr<MergeReducer>> make_cuda_merge_reducer(int) {
  return failed_precondition("there is no usable GPU: this program was built without CUDA");
}

}  // namespace tessera::kernels
