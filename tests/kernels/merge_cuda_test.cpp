// The merge's arithmetic on the GPU against the CPU reference: equal bytes, equal bits, nothing
// outside the outputs.
#include <cuda_runtime_api.h>

#include "kernels/device_fixture.h"
#include "kernels/merge_wire_fixture.h"
#include "tessera/kernels/merge.h"

namespace tessera::kernels {
namespace {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count), bytes_(count * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    bytes_.write(values.data());
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  std::vector<T> read() {
    std::vector<T> values(count_);
    bytes_.read(values.data());
    return values;
  }

 private:
  size_t count_;
  DeviceBytes bytes_;
};

class MergeCuda : public CudaTest {
 protected:
  void wait(int launched) {
    ASSERT_EQ(launched, cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }
};

TEST_F(MergeCuda, EncodesAndDecodesToTheSameBytes) {
  for (const Codec format : kMergeFormats) {
    for (const uint64_t values : kRunValues) {
      if (values == 0) continue;
      for (const uint64_t block : {256, 512, 4096}) {
        for (const bool stochastic : {false, true}) {
          const MergeCase c{{format, values, block}, stochastic, values * 77, 5};
          SCOPED_TRACE(describe(c));
          std::vector<float> input = merge_values(values, values + block);
          if (values > 700) input[600] = std::numeric_limits<float>::infinity();
          if (values > 1000) input[900] = -std::nanf("3");
          const std::vector<uint8_t> expected = merge_encoded(c, input);
          DeviceArray<float> device_input(input);
          DeviceArray<uint8_t> payload(expected.size());
          wait(merge_encode_cuda({.run = c.run,
                                  .input = device_input.data(),
                                  .stochastic = stochastic,
                                  .seed = c.seed,
                                  .first_block = c.first_block,
                                  .payload = payload.data()},
                                 stream_));
          expect_same_bytes(payload.read(), expected);
          DeviceArray<float> decoded(values);
          wait(merge_decode_cuda({.run = c.run,
                                  .payload = payload.data(),
                                  .assign = true,
                                  .sum = decoded.data()},
                                 stream_));
          expect_same_bytes(decoded.read(), merge_decoded(c.run, expected));
        }
      }
    }
  }
}

TEST_F(MergeCuda, ReducesToTheSameBits) {
  constexpr uint64_t kValues = 70001, kBlock = 1024;
  for (const Codec format : kMergeFormats) {
    std::vector<float> sum(kValues, 0.0f);
    DeviceArray<float> device_sum(sum);
    for (uint64_t k = 0; k < 5; ++k) {
      const MergeCase c{{format, kValues, kBlock}};
      std::vector<float> input = merge_values(kValues, 7 * k + 1);
      for (float& value : input) value = std::abs(value) > 1 ? 0.5f : value;  // no infinities
      const std::vector<uint8_t> payload = merge_encoded(c, input);
      const float weight = 0.1f * static_cast<float>(k + 1);
      merge_decode_cpu({.run = c.run, .payload = payload.data(), .weight = weight, .sum = sum.data()});
      DeviceArray<uint8_t> device_payload(payload);
      wait(merge_decode_cuda({.run = c.run,
                              .payload = device_payload.data(),
                              .weight = weight,
                              .sum = device_sum.data()},
                             stream_));
    }
    expect_same_bytes(device_sum.read(), sum);
  }
}

TEST_F(MergeCuda, MeasuresTheSameNumbers) {
  for (const uint64_t values : {uint64_t{1}, uint64_t{300}, uint64_t{70001}}) {
    constexpr uint64_t kBlock = 1024;
    const uint64_t blocks = (values + kBlock - 1) / kBlock;
    const std::vector<float> a = merge_values(values, 1), b = merge_values(values, 3);
    DeviceArray<float> device_a(a), device_b(b);
    std::vector<double> dots(blocks);
    merge_dots_cpu({.values = values, .block_values = kBlock, .a = a.data(), .b = b.data(), .dots = dots.data()});
    DeviceArray<double> device_dots(blocks);
    wait(merge_dots_cuda(
        {.values = values, .block_values = kBlock, .a = device_a.data(), .b = device_b.data(), .dots = device_dots.data()},
        stream_));
    expect_same_bytes(device_dots.read(), dots);
    merge_dots_cpu(
        {.values = values, .block_values = kBlock, .a = a.data(), .b = b.data(), .b_values = kBlock, .dots = dots.data()});
    wait(merge_dots_cuda({.values = values,
                          .block_values = kBlock,
                          .a = device_a.data(),
                          .b = device_b.data(),
                          .b_values = kBlock,
                          .dots = device_dots.data()},
                         stream_));
    expect_same_bytes(device_dots.read(), dots);
  }
}

TEST_F(MergeCuda, GivesTheSameDirections) {
  constexpr uint64_t kBlock = 1024, kValues = 40001, kBlocks = 40;
  constexpr uint32_t kInputs = 3;
  std::vector<std::vector<float>> inputs;
  std::vector<std::unique_ptr<DeviceArray<float>>> device_inputs;
  std::vector<const float*> pointers, device_pointers;
  std::vector<double> energies(kInputs * kBlocks);
  for (uint32_t k = 0; k < kInputs; ++k) {
    inputs.push_back(merge_values(kValues, k + 2));
    device_inputs.push_back(std::make_unique<DeviceArray<float>>(inputs.back()));
    device_pointers.push_back(device_inputs.back()->data());
  }
  for (uint32_t k = 0; k < kInputs; ++k) {
    pointers.push_back(inputs[k].data());
    merge_dots_cpu(
        {.values = kValues, .block_values = kBlock, .a = pointers[k], .b = pointers[k], .dots = energies.data() + k * kBlocks});
  }
  energies[7] = std::numeric_limits<double>::infinity();
  energies[50] = std::nan("");
  energies[51] = 0;
  const std::vector<float> weights = {0.3f, 0.5f, 0.2f};
  std::vector<float> factors(energies.size()), sum(kValues);
  merge_factors_cpu({kBlocks, kInputs, weights.data(), energies.data(), factors.data()});
  DeviceArray<float> device_weights(weights), device_factors(energies.size()), device_sum(kValues);
  DeviceArray<double> device_energies(energies);
  wait(merge_factors_cuda({kBlocks, kInputs, device_weights.data(), device_energies.data(), device_factors.data()}, stream_));
  expect_same_bytes(device_factors.read(), factors);
  merge_scaled_sum_cpu({kValues, kBlock, pointers.data(), kInputs, factors.data(), sum.data()});
  DeviceArray<const float*> table(device_pointers);
  wait(merge_scaled_sum_cuda({kValues, kBlock, table.data(), kInputs, device_factors.data(), device_sum.data()}, stream_));
  expect_same_bytes(device_sum.read(), sum);
}

TEST_F(MergeCuda, CodesBlocksOfAnyNumbers) {
  const std::vector<float> input = merge_values(4 * 512, 1);
  const std::vector<uint64_t> numbers = {9, 2, 0, 77};
  DeviceArray<float> device_input(input);
  DeviceArray<uint64_t> device_numbers(numbers);
  for (const Codec format : kMergeFormats) {
    const MergeRun run{format, input.size(), 512};
    std::vector<uint8_t> expected(merge_run_bytes(format, input.size(), 512));
    merge_encode_cpu({.run = run,
                      .input = input.data(),
                      .stochastic = true,
                      .seed = 5,
                      .numbers = numbers.data(),
                      .payload = expected.data()});
    DeviceArray<uint8_t> payload(expected.size());
    wait(merge_encode_cuda({.run = run,
                            .input = device_input.data(),
                            .stochastic = true,
                            .seed = 5,
                            .numbers = device_numbers.data(),
                            .payload = payload.data()},
                           stream_));
    expect_same_bytes(payload.read(), expected);
  }
}

TEST_F(MergeCuda, TrimsToTheSameMeans) {
  constexpr uint64_t kValues = 3001;
  for (const uint32_t count : {1u, 4u, 20u, 128u}) {
    std::vector<std::vector<float>> inputs;
    std::vector<std::unique_ptr<DeviceArray<float>>> device_inputs;
    std::vector<const float*> pointers, device_pointers;
    for (uint32_t k = 0; k < count; ++k) {
      inputs.push_back(merge_values(kValues, k));
      for (float& value : inputs.back()) value = std::abs(value) > 1 ? 0.5f : value;
      device_inputs.push_back(std::make_unique<DeviceArray<float>>(inputs.back()));
      device_pointers.push_back(device_inputs.back()->data());
    }
    for (const auto& input : inputs) pointers.push_back(input.data());
    std::vector<float> out(kValues);
    const uint32_t trim = (count - 1) / 4;
    trimmed_mean_cpu({pointers.data(), count, trim, kValues, out.data()});
    DeviceArray<const float*> table(device_pointers);
    DeviceArray<float> device_out(kValues);
    wait(trimmed_mean_cuda({table.data(), count, trim, kValues, device_out.data()}, stream_));
    expect_same_bytes(device_out.read(), out);
  }
}

TEST_F(MergeCuda, TakesTheSameOuterStep) {
  constexpr size_t kCount = 5003;
  std::vector<float> base(kCount), momentum(kCount), delta(kCount), theta(kCount);
  Prng random(3);
  for (size_t i = 0; i < kCount; ++i) {
    base[i] = static_cast<float>(random.uniform() - 0.5);
    momentum[i] = static_cast<float>(random.uniform() - 0.5) * 0.01f;
    delta[i] = static_cast<float>(random.uniform() - 0.5) * 0.02f;
    theta[i] = base[i] + delta[i];
  }
  const std::vector<float> snapshot = base;
  DeviceArray<float> device_base(base), device_momentum(momentum), device_delta(delta),
      device_theta(theta), device_snapshot(snapshot);
  outer_step_cpu(base.data(), momentum.data(), delta.data(), kCount, 0.7f, 0.9f);
  carry_over_cpu(theta.data(), snapshot.data(), base.data(), kCount);
  wait(outer_step_cuda(device_base.data(), device_momentum.data(), device_delta.data(), kCount,
                       0.7f, 0.9f, stream_));
  wait(carry_over_cuda(device_theta.data(), device_snapshot.data(), device_base.data(), kCount,
                       stream_));
  expect_same_bytes(device_base.read(), base);
  expect_same_bytes(device_momentum.read(), momentum);
  expect_same_bytes(device_theta.read(), theta);
  const std::vector<float> weights = {0.25f, 0.5f, 0.25f};
  const std::vector<const float*> inputs = {base.data(), momentum.data(), delta.data()};
  const std::vector<const float*> device_inputs = {device_base.data(), device_momentum.data(),
                                                   device_delta.data()};
  std::vector<float> sum(kCount);
  weighted_sum_cpu(inputs.data(), weights.data(), 3, kCount, sum.data());
  DeviceArray<const float*> table(device_inputs);
  DeviceArray<float> device_weights(weights), device_sum(kCount);
  wait(weighted_sum_cuda(table.data(), device_weights.data(), 3, kCount, device_sum.data(), stream_));
  expect_same_bytes(device_sum.read(), sum);
}

TEST_F(MergeCuda, RefusesWhatTheCpuAbortsOn) {
  EXPECT_EQ(merge_encode_cuda({.run = {Codec::kInt8, 1, 300}}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(merge_decode_cuda({.run = {Codec::kInt8, 1, 256}}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(trimmed_mean_cuda({.input_count = 2, .trim = 1}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
