// The embedding kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/embedding_fixture.h"

namespace tessera::kernels {
namespace {

class EmbeddingCuda : public CudaTest {
 protected:
  EmbeddingForward forward_on_device(const EmbeddingCase& c, const EmbeddingNumbers& numbers) {
    return embedding_forward<DeviceBytes>(c, numbers, [&](const EmbeddingForwardParams& params) {
      EXPECT_EQ(embedding_forward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }
  std::vector<float> backward_on_device(const EmbeddingCase& c, const EmbeddingNumbers& numbers) {
    return embedding_backward<DeviceBytes>(c, numbers, [&](const EmbeddingBackwardParams& params) {
      EXPECT_EQ(embedding_backward_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }

  void expect_agreement(const EmbeddingCase& c, const EmbeddingNumbers& numbers) {
    SCOPED_TRACE(name_of(c.type) + " " + std::to_string(c.rows) + "x" + std::to_string(c.width) +
                 " of " + std::to_string(c.vocabulary) + (c.normalise ? " normalised" : "") +
                 (c.accumulate ? " added" : "") + " offset " + std::to_string(c.offset));
    const EmbeddingForward expected = embedding_forward<HostBytes>(
        c, numbers, [](const EmbeddingForwardParams& p) { embedding_forward_cpu(p); });
    const EmbeddingForward actual = forward_on_device(c, numbers);
    expect_close(actual.y, doubles(expected.y), c.type,
                 [&](size_t i) { return kSumError * std::abs(expected.y[i]); });
    expect_close(actual.rstd, doubles(expected.rstd), Real::kFloat32,
                 [&](size_t i) { return kSumError * expected.rstd[i]; });
    const std::vector<float> gradient = embedding_backward<HostBytes>(
        c, numbers, [](const EmbeddingBackwardParams& p) { embedding_backward_cpu(p); });
    const std::vector<float> computed = backward_on_device(c, numbers);
    const std::vector<double> scales = table_scales(c, numbers);
    expect_close(computed, doubles(gradient), Real::kFloat32, [&](size_t i) {
      const double scale = scales[i / static_cast<size_t>(c.width)];
      return std::isfinite(scale) ? 4 * kSumError * scale : 0.0;
    });
    expect_same_bits(backward_on_device(c, numbers), computed);
  }
};

TEST_F(EmbeddingCuda, AgreesForEveryKindOfWidth) {
  for (const Real type : kReals) {
    for (const int64_t width : {1, 8, 9, 64, 250, 256, 768, 1000, 1024, 2048, 4096, 8192, 16384}) {
      for (int variant = 0; variant < 4; ++variant) {
        const EmbeddingCase c = {type, 70, width, 20, variant % 2 != 0, variant / 2 != 0};
        expect_agreement(c, embedding_numbers(c, static_cast<uint64_t>(width)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Runs that end at, before and after the ends of pieces, and runs over many pieces.
TEST_F(EmbeddingCuda, AgreesForEveryKindOfRun) {
  for (const Real type : kReals) {
    for (const int64_t rows : {1, 2, 31, 32, 33, 64, 65, 95, 128, 1000}) {
      for (const int64_t vocabulary : {1, 2, 3, 40, 5000}) {
        const EmbeddingCase c = {type, rows, 24, vocabulary, rows % 2 == 0, rows % 3 == 0};
        expect_agreement(c, embedding_numbers(c, static_cast<uint64_t>(rows)));
        if (HasFatalFailure()) return;
      }
    }
    // Runs of 31, 32, 33, 1, 64, 63 and so on, each of its own id.
    const EmbeddingCase c = {type, 31 + 32 + 33 + 1 + 64 + 63 + 32 + 300, 40, 8, true, true};
    EmbeddingNumbers numbers = embedding_numbers(c, 3);
    numbers.ids.clear();
    for (const int length : {31, 32, 33, 1, 64, 63, 32, 300}) {
      numbers.ids.insert(numbers.ids.end(), static_cast<size_t>(length),
                         length == 300 ? 0 : static_cast<int32_t>(numbers.ids.size() % 7 + 1));
    }
    expect_agreement(c, numbers);
  }
}

TEST_F(EmbeddingCuda, AgreesForManyRows) {
  const EmbeddingCase c = {Real::kBfloat16, 6000, 256, 3000, true, true};
  expect_agreement(c, embedding_numbers(c, 5));
}

TEST_F(EmbeddingCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    for (const size_t offset : {1, 2, 4, 7}) {
      const EmbeddingCase c = {type, 100, 64, 30, true, true, offset};
      expect_agreement(c, embedding_numbers(c, offset));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(EmbeddingCuda, AgreesForExtremeNumbersAndUnknownIds) {
  const std::vector<float> specials = {0.0f,
                                       1e-40f,
                                       1e-30f,
                                       1e18f,
                                       1e30f,
                                       std::numeric_limits<float>::infinity(),
                                       std::numeric_limits<float>::quiet_NaN()};
  for (const Real type : kReals) {
    for (const bool normalise : {false, true}) {
      const EmbeddingCase c = {type, 80, 40, 10, normalise, true};
      EmbeddingNumbers numbers = embedding_numbers(c, 6);
      for (size_t i = 0; i < specials.size(); ++i) {
        std::fill_n(numbers.table.begin() + static_cast<int64_t>(i) * 40, 40, specials[i]);
      }
      numbers.table = rounded(type, numbers.table);
      numbers.ids[3] = -1;
      numbers.ids[4] = 10;
      numbers.ids[5] = std::numeric_limits<int32_t>::min();
      numbers.dy[17 * 40 + 5] = std::numeric_limits<float>::quiet_NaN();
      expect_agreement(c, numbers);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(EmbeddingCuda, NoRowsAndBrokenSizes) {
  EXPECT_EQ(embedding_forward_cuda({.rows = 0, .width = 8, .vocabulary = 3}, stream_), cudaSuccess);
  EXPECT_EQ(embedding_backward_cuda({.rows = 0, .width = 8, .vocabulary = 3}, stream_),
            cudaSuccess);
  EXPECT_EQ(embedding_forward_cuda({.rows = 1, .width = 8, .vocabulary = 3}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(embedding_backward_cuda({.rows = 1, .width = 8, .vocabulary = 0}, stream_),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
