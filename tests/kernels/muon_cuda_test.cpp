// Muon's halves on the GPU against the CPU's: the same bits, nothing outside the outputs.
#include <cstring>
#include <memory>

#include "kernels/device_fixture.h"
#include "kernels/guarded.h"
#include "kernels/optimizer_fixture.h"

namespace tessera::kernels {
namespace {

constexpr size_t kGap = 5;  // what outputs hold before

// The arrays that a step changes, on the host.
struct MuonArrays {
  std::vector<float> values, momentum, weights_float, stack_float;
  std::vector<uint16_t> weights_bfloat16, stack_bfloat16;
};

class MuonCuda : public CudaTest {
 protected:
  static MuonArrays arrays_of(const MuonCase& which, const AdamState& state) {
    const size_t stack = which.offsets.size() * static_cast<size_t>(which.matrix_values);
    return {state.values,
            state.first,
            std::vector<float>(state.values.size(), kGap),
            random_values(static_cast<int64_t>(stack), 1.0, 8),
            std::vector<uint16_t>(state.values.size(), kGap),
            std::vector<uint16_t>(stack, 0x3f81)};
  }

  static void run_on_host(const MuonCase& which, const AdamState& state, const GradientNorm& norm,
                          bool wide_stack, bool apply, MuonArrays* arrays) {
    MuonParams params = muon_params(which);
    params.offsets = which.offsets.data();
    params.gradient.flat = state.gradient.data();
    params.momentum = arrays->momentum.data();
    params.values = arrays->values.data();
    params.weights_float = arrays->weights_float.data();
    params.weights_bfloat16 = arrays->weights_bfloat16.data();
    if (wide_stack) params.stack_float = arrays->stack_float.data();
    if (!wide_stack) params.stack_bfloat16 = arrays->stack_bfloat16.data();
    params.norm = &norm;
    const auto half = apply ? muon_apply_cpu : muon_momentum_cpu;
    half(params, 0, muon_block_count(params));
  }

  // A guarded device copy of a host vector, read back into it at the end.
  template <class T>
  class Mirror {
   public:
    Mirror(std::vector<T>* host, size_t misalignment)
        : host_(host), device_(host->size() * sizeof(T), misalignment * sizeof(T)) {
      device_.write(host->data());
    }
    ~Mirror() { device_.read(host_->data()); }
    T* data() { return reinterpret_cast<T*>(device_.data()); }

   private:
    std::vector<T>* host_;
    DeviceBytes device_;
  };

  void run_on_device(const MuonCase& which, const AdamState& state, const GradientNorm& norm,
                     bool wide_stack, bool apply, size_t misalignment, MuonArrays* arrays) {
    std::vector<float> gradient = state.gradient;
    std::vector<int64_t> offsets = which.offsets;
    std::vector<GradientNorm> norms = {norm};
    Mirror<float> device_gradient(&gradient, misalignment);
    Mirror<int64_t> device_offsets(&offsets, 0);
    Mirror<GradientNorm> device_norm(&norms, 0);
    Mirror<float> values(&arrays->values, misalignment), momentum(&arrays->momentum, misalignment),
        weights_float(&arrays->weights_float, misalignment),
        stack_float(&arrays->stack_float, misalignment);
    Mirror<uint16_t> weights_bfloat16(&arrays->weights_bfloat16, misalignment),
        stack_bfloat16(&arrays->stack_bfloat16, misalignment);
    MuonParams params = muon_params(which);
    params.offsets = device_offsets.data();
    params.gradient.flat = device_gradient.data();
    params.momentum = momentum.data();
    params.values = values.data();
    params.weights_float = weights_float.data();
    params.weights_bfloat16 = weights_bfloat16.data();
    if (wide_stack) params.stack_float = stack_float.data();
    if (!wide_stack) params.stack_bfloat16 = stack_bfloat16.data();
    params.norm = device_norm.data();
    EXPECT_EQ(apply ? muon_apply_cuda(params, stream_) : muon_momentum_cuda(params, stream_),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

  template <class T>
  static void expect_same_bits(const std::vector<T>& measured, const std::vector<T>& expected,
                               const char* what) {
    ASSERT_EQ(measured.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(std::memcmp(&measured[i], &expected[i], sizeof(T)), 0)
          << what << " " << i << ": " << measured[i] << " instead of " << expected[i];
    }
  }

  void expect_equal(const MuonCase& which, const AdamState& state, const GradientNorm& norm,
                    size_t misalignment = 0) {
    for (const bool wide_stack : {true, false}) {
      for (const bool apply : {false, true}) {
        SCOPED_TRACE(std::to_string(which.offsets.size()) + " matrices of " +
                     std::to_string(which.matrix_values) + ", misaligned by " +
                     std::to_string(misalignment) + (wide_stack ? ", fp32" : ", bf16") +
                     (apply ? " apply" : " momentum"));
        MuonArrays expected = arrays_of(which, state), measured = expected;
        run_on_host(which, state, norm, wide_stack, apply, &expected);
        run_on_device(which, state, norm, wide_stack, apply, misalignment, &measured);
        expect_same_bits(measured.values, expected.values, "value");
        expect_same_bits(measured.momentum, expected.momentum, "momentum");
        expect_same_bits(measured.weights_float, expected.weights_float, "fp32 weight");
        expect_same_bits(measured.weights_bfloat16, expected.weights_bfloat16, "bf16 weight");
        expect_same_bits(measured.stack_float, expected.stack_float, "fp32 stack");
        expect_same_bits(measured.stack_bfloat16, expected.stack_bfloat16, "bf16 stack");
      }
    }
  }
};

TEST_F(MuonCuda, HasTheBitsOfTheCpuAtOddPlacesAndAlignments) {
  for (const MuonCase& which : muon_cases()) {
    const AdamState state = random_state(which.count, 3);
    for (const size_t misalignment : {0, 1, 2, 3}) {
      expect_equal(which, state, {1, 0.37f, 1}, misalignment);
    }
  }
}

TEST_F(MuonCuda, TakesAGradientInPieces) {
  for (const MuonCase& which : muon_cases()) {
    const AdamState state = random_state(which.count, 3);
    const GradientNorm norm{1, 0.37f, 1};
    MuonArrays expected = arrays_of(which, state), measured = expected;
    run_on_host(which, state, norm, /*wide_stack=*/true, /*apply=*/false, &expected);
    {
      PiecesOfMuon apart(which, state.gradient);
      std::vector<std::unique_ptr<Mirror<float>>> pieces;
      std::vector<const float*> places;
      for (std::vector<float>& piece : apart.pieces) {
        pieces.push_back(std::make_unique<Mirror<float>>(&piece, 0));
        places.push_back(pieces.back()->data());
      }
      std::vector<int64_t> offsets = which.offsets;
      std::vector<GradientNorm> norms = {norm};
      Mirror<const float*> table(&places, 0);
      Mirror<int32_t> piece_of(&apart.piece_of, 0);
      Mirror<int64_t> device_offsets(&offsets, 0), offset_in(&apart.offset_in, 0);
      Mirror<GradientNorm> device_norm(&norms, 0);
      Mirror<float> momentum(&measured.momentum, 0), stack(&measured.stack_float, 0);
      MuonParams params = muon_params(which);
      params.offsets = device_offsets.data();
      params.gradient.pieces = table.data();
      params.gradient_pieces = piece_of.data();
      params.gradient_offsets = offset_in.data();
      params.momentum = momentum.data();
      params.stack_float = stack.data();
      params.norm = device_norm.data();
      EXPECT_EQ(muon_momentum_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    }
    expect_same_bits(measured.momentum, expected.momentum, "momentum");
    expect_same_bits(measured.stack_float, expected.stack_float, "fp32 stack");
  }
}

TEST_F(MuonCuda, HasTheBitsOfTheCpuForExtremeNumbers) {
  for (const MuonCase& which : muon_cases()) {
    expect_equal(which, extreme_state(which.count), {1, 1.0f, 1});
    expect_equal(which, random_state(which.count, 1, 1e-39), {1, 1.0f, 1});
  }
}

TEST_F(MuonCuda, WithoutAFiniteNormOnlyWritesTheComputeWeights) {
  for (const MuonCase& which : muon_cases()) {
    expect_equal(which, random_state(which.count, 3), {0, 0.0f, 0});
  }
}

TEST_F(MuonCuda, RefusesMissingPointers) {
  MuonParams params;
  EXPECT_EQ(muon_momentum_cuda(params, stream_), cudaSuccess);  // no matrices, nothing to do
  params.matrices = 1;
  params.matrix_values = 4;
  EXPECT_EQ(muon_momentum_cuda(params, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(muon_apply_cuda(params, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
