// The optimizer kernels on the GPU against the CPU's: the same bits of values, moments and compute
// weights given the same norm; norms within 2e-6; nothing outside the outputs.
#include <cstring>
#include <memory>

#include "kernels/device_fixture.h"
#include "kernels/guarded.h"
#include "kernels/optimizer_fixture.h"

namespace tessera::kernels {
namespace {

constexpr double kNormBound = 2e-6;  // docs/numerics.md

class OptimizerCuda : public CudaTest {
 protected:
  GradientNorm norm_on_device(const std::vector<float>& gradient, uint32_t microbatches,
                              double clip_norm, size_t misalignment = 0) {
    const int64_t count = static_cast<int64_t>(gradient.size());
    const std::vector<OptimizerChunk> chunks = whole_chunks(count);
    DeviceBytes numbers(gradient.size() * sizeof(float), misalignment);
    DeviceBytes device_chunks(chunks.size() * sizeof(OptimizerChunk));
    DeviceBytes partials(chunks.size() * sizeof(double));
    DeviceBytes result(sizeof(GradientNorm));
    numbers.write(gradient.data());
    device_chunks.write(chunks.data());
    NormParams params;
    params.gradient.flat = reinterpret_cast<const float*>(numbers.data());
    params.chunks = reinterpret_cast<const OptimizerChunk*>(device_chunks.data());
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.microbatches = microbatches;
    params.clip_norm = clip_norm;
    params.partials = reinterpret_cast<double*>(partials.data());
    params.result = reinterpret_cast<GradientNorm*>(result.data());
    EXPECT_EQ(norm_partials_cuda(params, stream_), cudaSuccess);
    EXPECT_EQ(finish_norm_cuda(params, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    GradientNorm norm;
    result.read(&norm);
    return norm;
  }

  static GradientNorm norm_on_host(const std::vector<float>& gradient, uint32_t microbatches,
                                   double clip_norm) {
    const std::vector<OptimizerChunk> chunks = whole_chunks(static_cast<int64_t>(gradient.size()));
    std::vector<double> partials(chunks.size());
    GradientNorm norm;
    NormParams params;
    params.gradient.flat = gradient.data();
    params.chunks = chunks.data();
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.microbatches = microbatches;
    params.clip_norm = clip_norm;
    params.partials = partials.data();
    params.result = &norm;
    norm_partials_cpu(params, 0, params.chunk_count);
    finish_norm_cpu(params);
    return norm;
  }

  void expect_equal_norm(const std::vector<float>& gradient, uint32_t microbatches,
                         double clip_norm, size_t misalignment = 0) {
    const GradientNorm expected = norm_on_host(gradient, microbatches, clip_norm);
    const GradientNorm measured = norm_on_device(gradient, microbatches, clip_norm, misalignment);
    EXPECT_EQ(measured.finite, expected.finite);
    if (expected.finite == 0) return;
    EXPECT_NEAR(measured.norm, expected.norm, kNormBound * expected.norm);
    EXPECT_NEAR(measured.scale, expected.scale, kNormBound * expected.scale);
  }

  struct Step {
    std::vector<float> values, first, second, weights_float;
    std::vector<uint16_t> weights_bfloat16;
  };

  static Step step_on_host(const AdamState& state, const std::vector<OptimizerChunk>& chunks,
                           const AdamConstants& constants, const GradientNorm& norm) {
    const size_t count = state.values.size();
    Step step{state.values, state.first, state.second, std::vector<float>(count, 5.0f),
              std::vector<uint16_t>(count, 5)};
    AdamParams params;
    params.chunks = chunks.data();
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.values = step.values.data();
    params.gradient.flat = state.gradient.data();
    params.first_moment = step.first.data();
    params.second_moment = step.second.data();
    params.weights_float = step.weights_float.data();
    params.weights_bfloat16 = step.weights_bfloat16.data();
    params.constants = constants;
    params.norm = &norm;
    adam_step_cpu(params, 0, params.chunk_count);
    return step;
  }

  // `misalignment`: in values, of every array.
  Step step_on_device(const AdamState& state, const std::vector<OptimizerChunk>& chunks,
                      const AdamConstants& constants, const GradientNorm& norm,
                      size_t misalignment) {
    const size_t count = state.values.size(), bytes = count * sizeof(float),
                 offset = misalignment * sizeof(float);
    DeviceBytes values(bytes, offset), gradient(bytes, offset), first(bytes, offset),
        second(bytes, offset), weights_float(bytes, offset),
        weights_bfloat16(count * sizeof(uint16_t), misalignment * sizeof(uint16_t)),
        device_chunks(chunks.size() * sizeof(OptimizerChunk)), device_norm(sizeof(norm));
    Step step{std::vector<float>(count), std::vector<float>(count), std::vector<float>(count),
              std::vector<float>(count, 5.0f), std::vector<uint16_t>(count, 5)};
    values.write(state.values.data());
    gradient.write(state.gradient.data());
    first.write(state.first.data());
    second.write(state.second.data());
    weights_float.write(step.weights_float.data());
    weights_bfloat16.write(step.weights_bfloat16.data());
    device_chunks.write(chunks.data());
    device_norm.write(&norm);
    AdamParams params;
    params.chunks = reinterpret_cast<const OptimizerChunk*>(device_chunks.data());
    params.chunk_count = static_cast<int64_t>(chunks.size());
    params.values = reinterpret_cast<float*>(values.data());
    params.gradient.flat = reinterpret_cast<const float*>(gradient.data());
    params.first_moment = reinterpret_cast<float*>(first.data());
    params.second_moment = reinterpret_cast<float*>(second.data());
    params.weights_float = reinterpret_cast<float*>(weights_float.data());
    params.weights_bfloat16 = reinterpret_cast<uint16_t*>(weights_bfloat16.data());
    params.constants = constants;
    params.norm = reinterpret_cast<const GradientNorm*>(device_norm.data());
    EXPECT_EQ(adam_step_cuda(params, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    values.read(step.values.data());
    first.read(step.first.data());
    second.read(step.second.data());
    weights_float.read(step.weights_float.data());
    weights_bfloat16.read(step.weights_bfloat16.data());
    return step;
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

  void expect_equal_step(const AdamState& state, const std::vector<OptimizerSegment>& segments,
                         const AdamConstants& constants, const GradientNorm& norm,
                         size_t misalignment = 0) {
    SCOPED_TRACE(std::to_string(state.values.size()) + " values, misaligned by " +
                 std::to_string(misalignment) + ", gradient weight " +
                 std::to_string(constants.gradient_weight));
    const std::vector<OptimizerChunk> chunks = optimizer_chunks(segments);
    const Step expected = step_on_host(state, chunks, constants, norm);
    const Step measured = step_on_device(state, chunks, constants, norm, misalignment);
    expect_same_bits(measured.values, expected.values, "value");
    expect_same_bits(measured.first, expected.first, "first moment");
    expect_same_bits(measured.second, expected.second, "second moment");
    expect_same_bits(measured.weights_float, expected.weights_float, "fp32 weight");
    expect_same_bits(measured.weights_bfloat16, expected.weights_bfloat16, "bf16 weight");
  }
};

TEST_F(OptimizerCuda, NormIsTheCpusAtEverySize) {
  for (const int64_t count : {1, 3, 4, 5, 1023, 1024, 1025, 16383, 16384, 16385, 50001, 3000017}) {
    const std::vector<float> gradient = random_values(count, 0.7, static_cast<uint64_t>(count));
    for (const size_t misalignment : {0, 4, 8}) {
      expect_equal_norm(gradient, 4, 1.0, misalignment);
    }
    expect_equal_norm(gradient, 1, 0);
  }
}

TEST_F(OptimizerCuda, NormIsRepeatedToTheBit) {
  const std::vector<float> gradient = random_values(2000003, 0.7, 3);
  const GradientNorm first = norm_on_device(gradient, 3, 1.0);
  for (int i = 0; i < 5; ++i) {
    const GradientNorm again = norm_on_device(gradient, 3, 1.0);
    EXPECT_EQ(std::memcmp(&again, &first, sizeof(first)), 0);
  }
}

TEST_F(OptimizerCuda, NormOfExtremeNumbersIsTheCpus) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  expect_equal_norm({}, 2, 1.0);
  expect_equal_norm(std::vector<float>(70000, 0.0f), 2, 1.0);
  expect_equal_norm(std::vector<float>(100, std::numeric_limits<float>::denorm_min()), 2, 1.0);
  expect_equal_norm({1e18f, 5e18f, 0.0f, 1e-30f}, 1, 1.0);
  for (const float bad : {kInfinity, -kInfinity, kNan, 1e20f}) {
    for (const size_t at : {0, 16384, 40001}) {
      std::vector<float> gradient(40002, 0.1f);
      gradient[at] = bad;
      expect_equal_norm(gradient, 1, 1.0);
    }
  }
}

TEST_F(OptimizerCuda, StepHasTheBitsOfTheCpuAtEverySize) {
  const GradientNorm norm{1, 0.37f, 1};
  for (const int64_t count : {1, 2, 3, 4, 7, 1024, 1039, 8192, 8193, 60001, 1000003}) {
    const AdamState state = random_state(count, static_cast<uint64_t>(count));
    for (const AdamConstants& constants : all_constants()) {
      expect_equal_step(state, odd_segments(count), constants, norm);
      if (count > 100000) break;
    }
  }
}

TEST_F(OptimizerCuda, StepHasTheBitsOfTheCpuAtAnyAlignment) {
  const AdamState state = random_state(30011, 2);
  for (const size_t misalignment : {1, 2, 3}) {
    expect_equal_step(state, odd_segments(30011), all_constants()[1], {1, 0.5f, 1}, misalignment);
  }
}

TEST_F(OptimizerCuda, StepHasTheBitsOfTheCpuForExtremeNumbers) {
  for (const AdamConstants& constants : all_constants()) {
    expect_equal_step(extreme_state(20003), odd_segments(20003), constants, {1, 1.0f, 1});
    expect_equal_step(random_state(5000, 1, 1e-22), odd_segments(5000), constants, {1, 1.0f, 1});
  }
}

TEST_F(OptimizerCuda, AGradientInPiecesGivesTheBitsOfAFlatOne) {
  constexpr int64_t kCount = 60001;
  const AdamState state = random_state(kCount, 4);
  const std::vector<int64_t> starts = odd_pieces(kCount);
  std::vector<std::unique_ptr<DeviceBytes>> pieces;
  std::vector<const float*> places;
  for (const std::vector<float>& piece : in_pieces(state.gradient, starts)) {
    const size_t misalignment = pieces.size() % 3 * sizeof(float);
    pieces.push_back(std::make_unique<DeviceBytes>(piece.size() * sizeof(float), misalignment));
    pieces.back()->write(piece.data());
    places.push_back(reinterpret_cast<const float*>(pieces.back()->data()));
  }
  const std::vector<OptimizerChunk> chunks = optimizer_chunks(odd_segments(kCount), starts);
  DeviceBytes table(places.size() * sizeof(places[0])), device_chunks(chunks.size() * sizeof(chunks[0]));
  DeviceBytes partials(chunks.size() * sizeof(double)), device_norm(sizeof(GradientNorm));
  table.write(places.data());
  device_chunks.write(chunks.data());
  NormParams norm_params;
  norm_params.gradient.pieces = reinterpret_cast<const float* const*>(table.data());
  norm_params.chunks = reinterpret_cast<const OptimizerChunk*>(device_chunks.data());
  norm_params.chunk_count = static_cast<int64_t>(chunks.size());
  norm_params.partials = reinterpret_cast<double*>(partials.data());
  norm_params.result = reinterpret_cast<GradientNorm*>(device_norm.data());
  EXPECT_EQ(norm_partials_cuda(norm_params, stream_), cudaSuccess);
  EXPECT_EQ(finish_norm_cuda(norm_params, stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  GradientNorm norm;
  device_norm.read(&norm);
  const GradientNorm on_host = norm_on_host(state.gradient, 1, 0);
  EXPECT_NEAR(norm.norm, on_host.norm, kNormBound * on_host.norm);

  Step measured{state.values, state.first, state.second, {}, {}};
  const Step expected =
      step_on_host(state, optimizer_chunks(odd_segments(kCount)), all_constants()[1], norm);
  DeviceBytes values(kCount * sizeof(float)), first(kCount * sizeof(float)),
      second(kCount * sizeof(float));
  values.write(state.values.data());
  first.write(state.first.data());
  second.write(state.second.data());
  AdamParams params;
  params.chunks = norm_params.chunks;
  params.chunk_count = norm_params.chunk_count;
  params.gradient = norm_params.gradient;
  params.values = reinterpret_cast<float*>(values.data());
  params.first_moment = reinterpret_cast<float*>(first.data());
  params.second_moment = reinterpret_cast<float*>(second.data());
  params.constants = all_constants()[1];
  params.norm = norm_params.result;
  EXPECT_EQ(adam_step_cuda(params, stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  values.read(measured.values.data());
  first.read(measured.first.data());
  second.read(measured.second.data());
  expect_same_bits(measured.values, expected.values, "value");
  expect_same_bits(measured.first, expected.first, "first moment");
  expect_same_bits(measured.second, expected.second, "second moment");
}

TEST_F(OptimizerCuda, StepLeavesWhatIsInNoSegmentAlone) {
  const AdamState state = random_state(40000, 5);
  expect_equal_step(state, {{10, 9000, true}, {20000, 1, false}, {30001, 77, true}},
                    all_constants()[0], {1, 0.5f, 1});
}

TEST_F(OptimizerCuda, StepWithoutAFiniteNormOnlyWritesTheComputeWeights) {
  const AdamState state = random_state(20003, 6);
  expect_equal_step(state, odd_segments(20003), all_constants()[0],
                    {std::numeric_limits<double>::infinity(), 0.0f, 0});
}

TEST_F(OptimizerCuda, RefusesMissingPointers) {
  NormParams norm;
  norm.chunk_count = 5;
  EXPECT_EQ(norm_partials_cuda(norm, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(finish_norm_cuda(norm, stream_), cudaErrorInvalidValue);
  AdamParams step;
  EXPECT_EQ(adam_step_cuda(step, stream_), cudaSuccess);  // no chunks, nothing to do
  step.chunk_count = 1;
  EXPECT_EQ(adam_step_cuda(step, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
