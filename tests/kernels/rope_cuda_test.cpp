// The rotary position kernels on the GPU against the reference.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/rope_fixture.h"

namespace tessera::kernels {
namespace {

class RopeCuda : public CudaTest {
 protected:
  std::vector<float> rope_on_device(const RopeShape& shape, const RopeTables& tables, bool inverse,
                                    const std::vector<float>& packed, size_t offset) {
    return rope<DeviceBytes>(shape, tables, inverse, packed, offset, [&](const RopeParams& params) {
      EXPECT_EQ(rope_cuda(params, stream_), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    });
  }
  std::vector<float> pack_on_device(const RopeShape& shape, const RopeTables& tables,
                                    bool head_major, const HeadGradients& gradients,
                                    size_t offset) {
    return rope_pack<DeviceBytes>(
        shape, tables, head_major, gradients, offset, [&](const RopePackParams& params) {
          EXPECT_EQ(rope_pack_gradient_cuda(params, stream_), cudaSuccess);
          EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        });
  }

  void expect_agreement(const RopeShape& shape, const std::vector<float>& packed, size_t offset) {
    SCOPED_TRACE(name_of(shape) + " offset " + std::to_string(offset));
    const RopeTables tables = rope_tables(shape.positions, shape.head_dim);
    const std::vector<double> scales = pair_scales(shape, packed);
    for (const bool inverse : {false, true}) {
      const std::vector<float> expected = rope<HostBytes>(shape, tables, inverse, packed, 0,
                                                          [](const RopeParams& p) { rope_cpu(p); });
      const std::vector<float> actual = rope_on_device(shape, tables, inverse, packed, offset);
      expect_close(actual, doubles(expected), shape.type,
                   [&](size_t i) { return 0x1p-22 * scales[i]; });
      expect_same_bits(rope_on_device(shape, tables, inverse, packed, offset), actual);
    }
  }

  void expect_pack_agreement(RopeShape shape, size_t offset) {
    shape.rows = 3 * shape.positions;
    SCOPED_TRACE("gradient " + name_of(shape) + " offset " + std::to_string(offset));
    const RopeTables tables = rope_tables(shape.positions, shape.head_dim);
    const HeadGradients gradients = head_gradients(shape, 11);
    double peak = 0.0;
    for (const float number : gradients.query) peak = std::max(peak, std::abs(double{number}));
    for (const float number : gradients.key) peak = std::max(peak, std::abs(double{number}));
    for (const bool head_major : {false, true}) {
      const std::vector<float> expected =
          rope_pack<HostBytes>(shape, tables, head_major, gradients, 0,
                               [](const RopePackParams& p) { rope_pack_gradient_cpu(p); });
      expect_close(pack_on_device(shape, tables, head_major, gradients, offset), doubles(expected),
                   shape.type, [&](size_t) { return 0x1p-22 * peak; });
    }
  }
};

TEST_F(RopeCuda, AgreesForEveryKindOfShape) {
  for (const Real type : kReals) {
    for (const RopeShape& shape :
         {RopeShape{type, 1, 1, 1, 1, 2}, RopeShape{type, 7, 4, 2, 1, 6},
          RopeShape{type, 12, 5, 4, 2, 16}, RopeShape{type, 9, 16, 3, 3, 34},
          RopeShape{type, 2100, 700, 12, 12, 64}, RopeShape{type, 130, 65, 32, 8, 64},
          RopeShape{type, 40, 20, 32, 8, 128}, RopeShape{type, 6, 3, 1, 1, 256},
          RopeShape{type, 6, 3, 5, 1, 80}}) {
      const std::vector<float> packed = random_reals(type, shape.rows, packed_width(shape), 3);
      expect_agreement(shape, packed, 0);
      expect_pack_agreement(shape, 0);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(RopeCuda, AgreesAtAnyAlignment) {
  for (const Real type : kReals) {
    const RopeShape shape = {type, 12, 4, 6, 2, 32};
    const std::vector<float> packed = random_reals(type, shape.rows, packed_width(shape), 4);
    for (const size_t offset : {1, 2, 4, 7}) {
      expect_agreement(shape, packed, offset);
      expect_pack_agreement(shape, offset);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(RopeCuda, AgreesForExtremeNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> specials = {0.0f,   -0.0f,     1e-40f,     1e-38f, 1e30f,
                                       -3e38f, kInfinity, -kInfinity, kNan};
  for (const Real type : kReals) {
    const RopeShape shape = {type, 16, 16, 2, 1, 16};
    std::vector<float> packed = random_reals(type, shape.rows, packed_width(shape), 5);
    for (size_t i = 0; i < packed.size(); i += 3) packed[i] = specials[i / 3 % specials.size()];
    expect_agreement(shape, rounded(type, packed), 0);
  }
}

TEST_F(RopeCuda, NoRowsAndBrokenSizes) {
  RopeParams params;
  RopePackParams gradient;
  params.shape = gradient.shape = {Real::kFloat32, 0, 1, 1, 1, 2};
  EXPECT_EQ(rope_cuda(params, stream_), cudaSuccess);
  EXPECT_EQ(rope_pack_gradient_cuda(gradient, stream_), cudaSuccess);
  params.shape = gradient.shape = {Real::kFloat32, 1, 1, 1, 1, 2};  // without memory
  EXPECT_EQ(rope_cuda(params, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(rope_pack_gradient_cuda(gradient, stream_), cudaErrorInvalidValue);
  params.shape.head_dim = 3;
  EXPECT_EQ(rope_cuda(params, stream_), cudaErrorInvalidValue);
  gradient.shape.positions = 2;  // not a whole sequence
  EXPECT_EQ(rope_pack_gradient_cuda(gradient, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
