// Products with SwiGLU at the end against the product and SwiGLU one after the other, for sizes
// that one kernel takes on the GPUs that have it and sizes that it does not.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <string>

#include "model/matrix_product.h"
#include "model/stage_ops.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {
namespace {

struct Sizes {
  int64_t rows, width, depth;
};
// Both products in one kernel, on 132 multiprocessors; the forward one alone; then none: too few
// rows, or a width or depth that it does not take.
constexpr Sizes kSizes[] = {{5'600, 768, 512}, {3'300, 640, 1'088}, {300, 768, 512},
                            {17, 256, 512},    {5'600, 704, 512},   {5'600, 768, 256}};

class SwigluProduct : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto device = choose_device("cuda"); !device.ok()) {
      GTEST_SKIP() << message_of(device.status());
    }
  }

  // Products of small numbers are exact, in whatever order they are added up.
  static Factor factor(int64_t rows, int64_t columns, double unit, at::ScalarType type,
                       int64_t offset = 0) {
    const at::Tensor flat =
        at::randint(-3, 4, {rows * columns + offset}, at::TensorOptions().dtype(at::kFloat));
    return {flat.mul(unit)
                .to(at::Device(at::kCUDA, 0), type)
                .narrow(0, offset, rows * columns)
                .view({rows, columns}),
            {},
            {},
            {}};
  }

  void expect_the_same(const Sizes& sizes, at::ScalarType type, bool tune, int64_t offset = 0) {
    SCOPED_TRACE(std::to_string(sizes.rows) + " rows, " + std::to_string(sizes.width) + " of " +
                 std::to_string(sizes.depth));
    const at::Device device(at::kCUDA, 0);
    MatrixProduct product(device, tune);
    const Factor x = factor(sizes.rows, sizes.depth, 1, type);
    const Factor up = factor(2 * sizes.width, sizes.depth, 0x1p-5, type, offset);
    const Factor down = factor(sizes.depth, sizes.width, 0x1p-5, type, offset);

    at::Tensor gate_up = at::empty({sizes.rows, 2 * sizes.width}, x.values.options());
    const at::Tensor together = at::empty_like(gate_up);
    const at::Tensor fed = product.forward_swiglu(together, x, up);
    product.forward(gate_up, x, up);
    EXPECT_TRUE(at::equal(together, gate_up));
    EXPECT_TRUE(at::equal(fed, swiglu_forward(gate_up)));

    for (const bool again : {true, false}) {
      const at::Tensor gradient = gate_up.clone(), expected = gate_up.clone();
      const at::Tensor made = product.input_gradient_swiglu(gradient, x, down, again);
      const at::Tensor dh = at::empty_like(fed);
      product.input_gradient(dh, x, down);
      swiglu_backward(dh, expected, again);
      EXPECT_TRUE(at::equal(gradient, expected));
      ASSERT_EQ(made.defined(), again);
      if (again) {
        EXPECT_TRUE(at::equal(made, fed));
      }
    }
  }
};

TEST_F(SwigluProduct, IsTheProductAndSwiglu) {
  for (const Sizes& sizes : kSizes) {
    for (const bool tune : {false, true}) expect_the_same(sizes, at::kBFloat16, tune);
  }
}

TEST_F(SwigluProduct, IsSoForOtherTypesAndAddresses) {
  for (const Sizes& sizes : kSizes) {
    expect_the_same(sizes, at::kFloat, /*tune=*/false);
    expect_the_same(sizes, at::kBFloat16, /*tune=*/false, /*offset=*/1);
  }
}

}  // namespace
}  // namespace tessera::model
