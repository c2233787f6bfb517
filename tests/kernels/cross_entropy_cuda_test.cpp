// The cross-entropy kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/cross_entropy_fixture.h"
#include "kernels/device_fixture.h"

namespace tessera::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class CrossEntropyCuda : public CudaTest {
 protected:
  CrossEntropyResult on_device(const CrossEntropyCase& c, const CrossEntropyNumbers& numbers) {
    return cross_entropy<DeviceBytes>(c, numbers, [&](const CrossEntropyParams& params) {
      EXPECT_EQ(cross_entropy_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }

  void expect_agreement(const CrossEntropyCase& c, const CrossEntropyNumbers& numbers) {
    SCOPED_TRACE(name_of(c.type) + " " + std::to_string(c.rows) + "x" +
                 std::to_string(c.vocabulary) + " of " + std::to_string(c.columns) + " offset " +
                 std::to_string(c.offset));
    const CrossEntropyResult expected = cross_entropy<HostBytes>(
        c, numbers, [](const CrossEntropyParams& p) { cross_entropy_cpu(p); });
    const CrossEntropyResult actual = on_device(c, numbers);
    expect_close(actual.losses, doubles(expected.losses), Real::kFloat32,
                 [&](size_t row) { return kSumError * loss_scale(c, numbers, row); });
    // Shares are relative to the sum, whose terms exp(v - peak) are off by 2^-24 |v - peak|.
    expect_close(actual.logits, doubles(expected.logits), c.type, [&](size_t i) {
      const double share = std::min(1.0, std::abs(expected.logits[i] / double{c.scale}));
      return c.gradient ? c.scale * (0x1p-14 * share + 0x1p-20) : 0.0;
    });
    const CrossEntropyResult repeated = on_device(c, numbers);
    expect_same_bits(repeated.losses, actual.losses);
    expect_same_bits(repeated.logits, actual.logits);
  }
};

TEST_F(CrossEntropyCuda, AgreesForEveryKindOfVocabulary) {
  for (const Real type : kReals) {
    for (const auto& [vocabulary, columns] : {std::pair<int64_t, int64_t>{1, 1},
                                              {2, 8},
                                              {7, 7},
                                              {50, 64},
                                              {4096, 4096},
                                              {4095, 4096},
                                              {4097, 4224},
                                              {16'384, 16'384},
                                              {16'391, 16'400},
                                              {32'000, 32'000},
                                              {50'257, 50'304}}) {
      const CrossEntropyCase c = {type, vocabulary > 10'000 ? 3 : 9, vocabulary, columns, 0.01f};
      CrossEntropyNumbers numbers = cross_entropy_numbers(c, static_cast<uint64_t>(vocabulary));
      for (size_t i = 0; i < numbers.logits.size(); ++i) {  // padding: must not be looked at
        if (static_cast<int64_t>(i) % columns >= vocabulary) numbers.logits[i] = kNan;
      }
      expect_agreement(c, numbers);
      CrossEntropyCase loss_only = c;
      loss_only.gradient = false;
      const CrossEntropyResult kept = on_device(loss_only, numbers);
      expect_same_bits(kept.losses, on_device(c, numbers).losses);
      expect_close(kept.logits, doubles(numbers.logits), Real::kFloat32,
                   [](size_t) { return 0.0; });
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CrossEntropyCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    for (const size_t offset : {1, 2, 4, 7}) {
      const CrossEntropyCase c = {type, 4, 1000, 1024, 1.0f, true, offset};
      expect_agreement(c, cross_entropy_numbers(c, offset));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CrossEntropyCuda, AgreesForExtremeNumbers) {
  const std::vector<float> specials = {0.0f,  -0.0f,  1e-40f,    -1e-30f,    1e4f, -1e4f,
                                       1e30f, -1e30f, kInfinity, -kInfinity, kNan};
  for (const Real type : kReals) {
    for (const bool everywhere : {false, true}) {
      const CrossEntropyCase c = {type, static_cast<int64_t>(specials.size()), 5000, 5000};
      CrossEntropyNumbers numbers = cross_entropy_numbers(c, 23);
      for (int64_t i = 0; i < c.rows * c.columns; ++i) {
        if (everywhere || i % 4999 == 3) numbers.logits[i] = specials[i / c.columns];
      }
      numbers.logits = rounded(type, numbers.logits);
      expect_agreement(c, numbers);
      if (HasFatalFailure()) return;
    }
    // One number among a sea of -infinity, where only some threads see a number.
    const CrossEntropyCase c = {type, 2, 5000, 5000};
    CrossEntropyNumbers numbers = cross_entropy_numbers(c, 24);
    std::fill(numbers.logits.begin(), numbers.logits.end(), -kInfinity);
    numbers.logits[0] = 3.0f;
    numbers.logits[9999] = -3.0f;
    expect_agreement(c, numbers);
  }
}

TEST_F(CrossEntropyCuda, BadTargetsCountAsNanAndDoNoHarm) {
  const CrossEntropyCase c = {Real::kBfloat16, 5, 600, 640};
  CrossEntropyNumbers numbers = cross_entropy_numbers(c, 2);
  numbers.targets = {-1, 600, 2, std::numeric_limits<int32_t>::max(),
                     std::numeric_limits<int32_t>::min()};
  expect_agreement(c, numbers);
}

TEST_F(CrossEntropyCuda, NoRowsAndBrokenSizes) {
  EXPECT_EQ(cross_entropy_cuda({.rows = 0, .vocabulary = 8, .columns = 8}, stream_), cudaSuccess);
  EXPECT_EQ(cross_entropy_cuda({.rows = 1, .vocabulary = 9, .columns = 8}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(cross_entropy_cuda({.rows = 1, .vocabulary = 8, .columns = 8}, stream_),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
