#include "model/matrix_product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <compare>
#include <cstdint>

#ifdef TESSERA_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#endif

namespace tessera::model {

#ifdef TESSERA_WITH_CUDA

namespace {

constexpr int64_t kWorkspaceBytes = 64 << 20;
constexpr int kCandidates = 32;
constexpr int kTimedCalls = 6;

void check(cublasStatus_t status, const char* what) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: ", what, " failed with status ",
              static_cast<int>(status));
}
void check(cudaError_t code, const char* what) {
  TORCH_CHECK(code == cudaSuccess, "CUDA: ", what, ": ", cudaGetErrorString(code));
}

cudaDataType_t data_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return CUDA_R_32F;
    case at::kBFloat16: return CUDA_R_16BF;
    case at::kFloat8_e4m3fn: return CUDA_R_8F_E4M3;
    case at::kFloat8_e5m2: return CUDA_R_8F_E5M2;
    default: TORCH_CHECK(false, "matrix product of ", type);
  }
}

template <class Handle, cublasStatus_t (*Destroy)(Handle)>
struct Deleter {
  using pointer = Handle;
  void operator()(Handle handle) const { Destroy(handle); }
};
using Operation =
    std::unique_ptr<cublasLtMatmulDesc_t, Deleter<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayout_t,
                               Deleter<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreference_t,
                    Deleter<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

Layout make_layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t leading) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), leading),
        "a matrix layout");
  return Layout(layout);
}

// The largest power of two up to 16 that divides the address; cuBLASLt's kernels ask for no more.
uint32_t alignment_of(const void* pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  return address == 0 ? 16 : static_cast<uint32_t>(std::min<uintptr_t>(16, address & -address));
}

}  // namespace

// A product in cuBLASLt's terms, column-major: out [m, n] = op(first) op(second) (+ addend).
// A row-major matrix is the column-major transpose, so `first` is our right factor.
struct MatrixProduct::Shape {
  int64_t m = 0, n = 0, k = 0;
  int64_t first_leading = 0, second_leading = 0, out_leading = 0;
  bool transpose_first = false, transpose_second = false;
  at::ScalarType first_type = at::kBFloat16, second_type = at::kBFloat16, out_type = at::kBFloat16;
  bool adds = false;
  bool fast_sums = false;  // of codes: sums keep fewer bits than fp32's
  std::array<uint32_t, 4> alignment{};
  auto operator<=>(const Shape&) const = default;
};

struct MatrixProduct::Plan {
  Operation operation;
  Layout first, second, out;
  cublasLtMatmulAlgo_t algorithm{};
};

class MatrixProduct::Library {
 public:
  explicit Library(const at::Device& device) {
    check(cublasLtCreate(&handle), "creating a handle");
    workspace = at::empty({kWorkspaceBytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  ~Library() { cublasLtDestroy(handle); }

  cublasStatus_t run(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, bool adds,
                     const void* first, const void* second, const void* addend, void* out,
                     const void* first_scale, const void* second_scale, cudaStream_t stream) const {
    if (first_scale != nullptr) {
      const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const void* scale) {
        check(cublasLtMatmulDescSetAttribute(plan.operation.get(), attribute, &scale, sizeof(scale)),
              "setting a scale");
      };
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, first_scale);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, second_scale);
    }
    const float one = 1, beta = adds ? 1.0f : 0.0f;
    return cublasLtMatmul(handle, plan.operation.get(), &one, first, plan.first.get(), second,
                          plan.second.get(), &beta, adds ? addend : out, plan.out.get(), out,
                          plan.out.get(), &algorithm, workspace.data_ptr(), kWorkspaceBytes,
                          stream);
  }

  cublasLtHandle_t handle = nullptr;
  at::Tensor workspace;
  std::map<Shape, Plan> plans;
};

namespace {

// Milliseconds of one call of `run` on the stream, after one to warm up.
template <class Run>
float measure(const Run& run, cudaStream_t stream) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  bool worked = run() == CUBLAS_STATUS_SUCCESS;
  check(cudaEventRecord(begin, stream), "recording an event");
  for (int i = 0; worked && i < kTimedCalls; ++i) worked = run() == CUBLAS_STATUS_SUCCESS;
  check(cudaEventRecord(end, stream), "recording an event");
  check(cudaEventSynchronize(end), "a matrix product");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return worked ? milliseconds : -1;
}

}  // namespace

MatrixProduct::Plan MatrixProduct::make_plan(const Shape& shape, const void* first,
                                             const void* second, const void* addend, void* out,
                                             const void* first_scale, const void* second_scale) {
  Plan plan;
  cublasLtMatmulDesc_t operation = nullptr;
  check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
  plan.operation.reset(operation);
  const auto set_transposed = [&](cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const cublasOperation_t value = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
          "setting a transposition");
  };
  set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_first);
  set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_second);
  if (shape.fast_sums) {
    const int8_t on = 1;
    check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &on, sizeof(on)),
          "choosing fast sums");
  }
  const cudaDataType_t first_type = data_type(shape.first_type);
  const cudaDataType_t second_type = data_type(shape.second_type);
  plan.first = shape.transpose_first ? make_layout(first_type, shape.k, shape.m, shape.first_leading)
                                     : make_layout(first_type, shape.m, shape.k, shape.first_leading);
  plan.second = shape.transpose_second ? make_layout(second_type, shape.n, shape.k, shape.second_leading)
                                       : make_layout(second_type, shape.k, shape.n, shape.second_leading);
  plan.out = make_layout(data_type(shape.out_type), shape.m, shape.n, shape.out_leading);

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "a preference");
  const Preference owned(preference);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
          "setting a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.alignment[0]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.alignment[1]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.alignment[2]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.alignment[3]);

  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(library_->handle, operation, plan.first.get(),
                                       plan.second.get(), plan.out.get(), plan.out.get(),
                                       preference, tune_ ? kCandidates : 1, found.data(), &count),
        "choosing a kernel");
  TORCH_CHECK(count > 0, "cuBLASLt has no kernel for a product of ", shape.m, " x ", shape.n,
              " x ", shape.k);
  plan.algorithm = found[0].algo;
  if (!tune_ || count == 1) return plan;

  // Timed on the real operands; the results go elsewhere, since `out` may hold a sum.
  const int64_t out_elements = shape.out_leading * shape.n;
  const at::Tensor scratch =
      at::empty({out_elements}, at::TensorOptions().dtype(shape.out_type).device(device_));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  float best = -1;
  for (int i = 0; i < count; ++i) {
    const float milliseconds = measure(
        [&] {
          return library_->run(plan, found[i].algo, shape.adds, first, second,
                               addend == out ? scratch.data_ptr() : addend, scratch.data_ptr(),
                               first_scale, second_scale, stream);
        },
        stream);
    if (milliseconds < 0 || (best >= 0 && milliseconds >= best)) continue;
    best = milliseconds;
    plan.algorithm = found[i].algo;
  }
  return plan;
}

void MatrixProduct::multiply(const Shape& shape, const void* first, const void* second,
                             const void* addend, void* out, const void* first_scale,
                             const void* second_scale) {
  auto plan = library_->plans.find(shape);
  if (plan == library_->plans.end()) {
    plan = library_->plans
               .emplace(shape, make_plan(shape, first, second, addend, out, first_scale, second_scale))
               .first;
  }
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  check(library_->run(plan->second, plan->second.algorithm, shape.adds, first, second, addend, out,
                      first_scale, second_scale, stream),
        "a matrix product");
}

void MatrixProduct::multiply_codes(const at::Tensor& out, const at::Tensor& first,
                                   const at::Tensor& first_scale, const at::Tensor& second,
                                   const at::Tensor& second_scale, const at::Tensor& addend,
                                   bool fast_sums) {
  const void* added = addend.defined() ? addend.const_data_ptr() : nullptr;
  multiply({.m = first.size(0),
            .n = second.size(0),
            .k = first.size(1),
            .first_leading = first.stride(0),
            .second_leading = second.stride(0),
            .out_leading = out.stride(0),
            .transpose_first = true,
            .first_type = first.scalar_type(),
            .second_type = second.scalar_type(),
            .out_type = out.scalar_type(),
            .adds = addend.defined(),
            .fast_sums = fast_sums,
            .alignment = {alignment_of(first.const_data_ptr()),
                          alignment_of(second.const_data_ptr()), alignment_of(added),
                          alignment_of(out.const_data_ptr())}},
           first.const_data_ptr(), second.const_data_ptr(), added, out.data_ptr(),
           first_scale.const_data_ptr(), second_scale.const_data_ptr());
}

#else

struct MatrixProduct::Shape {};
struct MatrixProduct::Plan {};
class MatrixProduct::Library {};

#endif

MatrixProduct::MatrixProduct(const at::Device& device, bool tune, bool fp8)
    : device_(device), tune_(tune), fp8_(fp8) {
#ifdef TESSERA_WITH_CUDA
  if (device.is_cuda()) library_ = std::make_unique<Library>(device);
#endif
}
MatrixProduct::~MatrixProduct() = default;
MatrixProduct::MatrixProduct(MatrixProduct&&) noexcept = default;

void MatrixProduct::forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& addend) {
#ifdef TESSERA_WITH_CUDA
  if (device_.is_cuda()) {
    const void* added = addend.defined() ? addend.const_data_ptr() : nullptr;
    multiply({.m = weight.size(0),
              .n = x.size(0),
              .k = weight.size(1),
              .first_leading = weight.stride(0),
              .second_leading = x.stride(0),
              .out_leading = out.stride(0),
              .transpose_first = true,
              .first_type = x.scalar_type(),
              .second_type = x.scalar_type(),
              .out_type = out.scalar_type(),
              .adds = addend.defined(),
              .alignment = {alignment_of(weight.const_data_ptr()), alignment_of(x.const_data_ptr()),
                            alignment_of(added), alignment_of(out.const_data_ptr())}},
             weight.const_data_ptr(), x.const_data_ptr(), added, out.data_ptr());
    return;
  }
#endif
  at::Tensor result = out;
  if (addend.defined()) {
    at::addmm_out(result, addend, x, weight.t());
  } else {
    at::mm_out(result, x, weight.t());
  }
}

void MatrixProduct::input_gradient(const at::Tensor& out, const at::Tensor& y,
                                   const at::Tensor& weight) {
#ifdef TESSERA_WITH_CUDA
  if (device_.is_cuda()) {
    multiply({.m = weight.size(1),
              .n = y.size(0),
              .k = weight.size(0),
              .first_leading = weight.stride(0),
              .second_leading = y.stride(0),
              .out_leading = out.stride(0),
              .first_type = y.scalar_type(),
              .second_type = y.scalar_type(),
              .out_type = out.scalar_type(),
              .alignment = {alignment_of(weight.const_data_ptr()), alignment_of(y.const_data_ptr()),
                            alignment_of(nullptr), alignment_of(out.const_data_ptr())}},
             weight.const_data_ptr(), y.const_data_ptr(), nullptr, out.data_ptr());
    return;
  }
#endif
  at::Tensor result = out;
  at::mm_out(result, y, weight);
}

void MatrixProduct::weight_gradient(const at::Tensor& out, const at::Tensor& y, const at::Tensor& x,
                                    bool accumulate) {
#ifdef TESSERA_WITH_CUDA
  if (device_.is_cuda()) {
    const void* added = accumulate ? out.const_data_ptr() : nullptr;
    multiply({.m = x.size(1),
              .n = y.size(1),
              .k = x.size(0),
              .first_leading = x.stride(0),
              .second_leading = y.stride(0),
              .out_leading = out.stride(0),
              .transpose_second = true,
              .first_type = x.scalar_type(),
              .second_type = x.scalar_type(),
              .out_type = out.scalar_type(),
              .adds = accumulate,
              .alignment = {alignment_of(x.const_data_ptr()), alignment_of(y.const_data_ptr()),
                            alignment_of(added), alignment_of(out.const_data_ptr())}},
             x.const_data_ptr(), y.const_data_ptr(), added, out.data_ptr());
    return;
  }
#endif
  at::Tensor result = out;
  if (accumulate) {
    result.addmm_(y.t(), x);
  } else {
    at::mm_out(result, y.t(), x);
  }
}

}  // namespace tessera::model
