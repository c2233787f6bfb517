// Products that end in SwiGLU against a product on the CPU and the SwiGLU kernels.
#include <gtest/gtest.h>

#include "kernels/device_fixture.h"
#include "kernels/swiglu_fixture.h"
#include "tessera/kernels/swiglu_product.h"

namespace tessera::kernels {
namespace {

constexpr Real kType = Real::kBfloat16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const std::vector<float> kSpecials = {0.0f,   -0.0f,  1e-40f, -1e-40f,   1e-30f, 20.0f,
                                      -20.0f, 100.0f, -80.0f, 1e30f,     -1e30f, kInfinity,
                                      kNan,   -87.0f, -86.0f, -kInfinity};

struct Sizes {
  int64_t rows, width, depth;
};

// Multiples of `unit` small enough for every sum of products to be exact in fp32, in any order.
std::vector<float> small_numbers(int64_t count, float unit, uint64_t seed) {
  Prng prng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = unit * (static_cast<float>(prng.below(7)) - 3.0f);
  return values;
}

std::vector<float> transposed(const std::vector<float>& values, int64_t rows, int64_t columns) {
  std::vector<float> result(values.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) result[j * rows + i] = values[i * columns + j];
  }
  return result;
}

// a [m, k] b [k, n], not rounded.
template <class Sum>
std::vector<Sum> multiplied(const std::vector<float>& a, const std::vector<float>& b, int64_t m,
                            int64_t n, int64_t k) {
  std::vector<Sum> out(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    Sum* row = out.data() + i * n;
    for (int64_t l = 0; l < k; ++l) {
      const Sum factor = a[i * k + l];
      const float* other = b.data() + l * n;
      for (int64_t j = 0; j < n; ++j) row[j] += factor * other[j];
    }
  }
  return out;
}

std::vector<float> magnitudes(std::vector<float> values) {
  for (float& value : values) value = std::abs(value);
  return values;
}

// The same bits, or both NaN.
void expect_same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_EQ(bits_of_float(a[i]), bits_of_float(b[i]))
        << "number " << i << ": " << a[i] << " instead of " << b[i];
  }
}

class SwigluProductCuda : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    void* const anywhere = reinterpret_cast<void*>(uintptr_t{256});
    if (!swiglu_product_forward_fits({1, 128, 384, anywhere, anywhere, anywhere, anywhere})) {
      GTEST_SKIP() << "these kernels run on GPUs of compute capability 9.0 alone";
    }
  }

  struct Forward {
    std::vector<float> gate_up, h;
  };
  // weight: [2 * width, depth]
  Forward forward(const Sizes& sizes, const std::vector<float>& x,
                  const std::vector<float>& weight) {
    const auto count = static_cast<size_t>(sizes.rows * sizes.width);
    Reals<DeviceBytes> a(kType, x), b(kType, weight), gate_up(kType, 2 * count), h(kType, count);
    EXPECT_EQ(swiglu_product_forward_cuda({sizes.rows, sizes.width, sizes.depth, a.data(), b.data(),
                                           gate_up.data(), h.data()},
                                          stream_),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return {gate_up.values(), h.values()};
  }
  // weight: [depth, width]
  SwigluGradient backward(const Sizes& sizes, const std::vector<float>& dy,
                          const std::vector<float>& weight, const std::vector<float>& gate_up,
                          bool makes_h = true) {
    Reals<DeviceBytes> a(kType, dy), b(kType, weight), gradient(kType, gate_up),
        h(kType, static_cast<size_t>(sizes.rows * sizes.width));
    EXPECT_EQ(
        swiglu_product_backward_cuda({sizes.rows, sizes.width, sizes.depth, a.data(), b.data(),
                                      gradient.data(), makes_h ? h.data() : nullptr},
                                     stream_),
        cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return {gradient.values(), h.values()};
  }

  // The kernels of swiglu.h.
  std::vector<float> plain_forward(const Sizes& sizes, const std::vector<float>& gate_up) {
    const SwigluCase c = {kType, sizes.rows, sizes.width};
    const auto width = static_cast<size_t>(sizes.rows * sizes.width);
    return swiglu_forward<DeviceBytes>(
        c, {gate_up, std::vector<float>(width)}, [&](const SwigluForwardParams& params) {
          EXPECT_EQ(swiglu_forward_cuda(params, stream_), cudaSuccess);
          EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        });
  }
  SwigluGradient plain_backward(const Sizes& sizes, const SwigluNumbers& numbers) {
    return swiglu_backward<DeviceBytes>(
        {kType, sizes.rows, sizes.width}, numbers, [&](const SwigluBackwardParams& params) {
          EXPECT_EQ(swiglu_backward_cuda(params, stream_), cudaSuccess);
          EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        });
  }

  // With factors whose products are exact, so that every bit is known.
  void expect_exact_forward(const Sizes& sizes) {
    SCOPED_TRACE(std::to_string(sizes.rows) + " rows, " + std::to_string(sizes.width) + " of " +
                 std::to_string(sizes.depth));
    const auto seed = static_cast<uint64_t>(sizes.rows * 7 + sizes.width);
    const std::vector<float> x = small_numbers(sizes.rows * sizes.depth, 1.0f, seed);
    const std::vector<float> weight =
        small_numbers(2 * sizes.width * sizes.depth, 0x1p-5f, seed + 1);
    const std::vector<float> product =
        rounded(kType, multiplied<float>(x, transposed(weight, 2 * sizes.width, sizes.depth),
                                         sizes.rows, 2 * sizes.width, sizes.depth));
    const Forward actual = forward(sizes, x, weight);
    expect_same_numbers(actual.gate_up, product);
    expect_same_numbers(actual.h, plain_forward(sizes, product));
    const Forward repeated = forward(sizes, x, weight);
    expect_same_bits(repeated.gate_up, actual.gate_up);
    expect_same_bits(repeated.h, actual.h);
  }
  void expect_exact_backward(const Sizes& sizes) {
    SCOPED_TRACE(std::to_string(sizes.rows) + " rows, " + std::to_string(sizes.width) + " of " +
                 std::to_string(sizes.depth));
    const auto seed = static_cast<uint64_t>(sizes.rows * 5 + sizes.width);
    const std::vector<float> dy = small_numbers(sizes.rows * sizes.depth, 1.0f, seed);
    const std::vector<float> weight = small_numbers(sizes.depth * sizes.width, 0x1p-5f, seed + 1);
    const std::vector<float> gate_up = random_reals(kType, sizes.rows, 2 * sizes.width, seed + 2);
    const std::vector<float> dh =
        rounded(kType, multiplied<float>(dy, weight, sizes.rows, sizes.width, sizes.depth));
    const SwigluGradient expected = plain_backward(sizes, {gate_up, dh});
    const SwigluGradient actual = backward(sizes, dy, weight, gate_up);
    expect_same_numbers(actual.gate_up, expected.gate_up);
    expect_same_numbers(actual.h, expected.h);
    const SwigluGradient repeated = backward(sizes, dy, weight, gate_up);
    expect_same_bits(repeated.gate_up, actual.gate_up);
    expect_same_bits(repeated.h, actual.h);
    const SwigluGradient without = backward(sizes, dy, weight, gate_up, /*makes_h=*/false);
    expect_same_bits(without.gate_up, actual.gate_up);
    expect_same_bits(without.h, Reals<HostBytes>(kType, without.h.size()).values());
  }
};

// A block has tiles of 128 rows, a cluster of the forward kernel 256.
TEST_F(SwigluProductCuda, ForwardIsExactForEveryKindOfSize) {
  for (const Sizes& sizes : {Sizes{1, 128, 384},
                             {16, 128, 384},
                             {17, 256, 448},
                             {64, 384, 384},
                             {127, 128, 1088},
                             {128, 128, 384},
                             {129, 640, 512},
                             {255, 128, 384},
                             {257, 384, 640},
                             {700, 256, 384}}) {
    expect_exact_forward(sizes);
    if (HasFatalFailure()) return;
  }
}

TEST_F(SwigluProductCuda, BackwardIsExactForEveryKindOfSize) {
  for (const Sizes& sizes : {Sizes{1, 256, 512},
                             {16, 256, 512},
                             {17, 512, 576},
                             {64, 256, 768},
                             {127, 256, 960},
                             {128, 256, 1024},
                             {129, 768, 1088},
                             {255, 256, 512},
                             {257, 512, 1024},
                             {700, 256, 1216}}) {
    expect_exact_backward(sizes);
    if (HasFatalFailure()) return;
  }
}

// More than a block's one tile, and runs of tiles that are not whole: a GPU has up to 144 blocks.
TEST_F(SwigluProductCuda, ForwardIsExactForManyTiles) {
  expect_exact_forward({4'500, 1'152, 384});  // 18 by 9 tiles for 66 clusters
}

TEST_F(SwigluProductCuda, BackwardIsExactForManyTiles) {
  expect_exact_backward({2'700, 2'048, 576});  // 22 by 8 tiles
  expect_exact_backward({2'700, 2'048, 1'024});
}

TEST_F(SwigluProductCuda, AgreesWithTheReferenceForAnyNumbers) {
  const Sizes sizes = {300, 512, 1'088};
  const auto [rows, width, depth] = sizes;
  const std::vector<float> x = random_reals(kType, rows, depth, 1);
  const std::vector<float> up_weight = random_reals(kType, 2 * width, depth, 2);
  const std::vector<float> up_columns = transposed(up_weight, 2 * width, depth);
  const std::vector<double> sums =
      multiplied<double>(magnitudes(x), magnitudes(up_columns), rows, 2 * width, depth);
  const Forward actual = forward(sizes, x, up_weight);
  expect_close(actual.gate_up, multiplied<double>(x, up_columns, rows, 2 * width, depth), kType,
               [&](size_t i) { return kSumError * sums[i]; });
  const SwigluCase c = {kType, rows, width};
  const auto zeros = std::vector<float>(actual.h.size());
  const std::vector<float> h = swiglu_forward<HostBytes>(
      c, {actual.gate_up, zeros}, [](const SwigluForwardParams& p) { swiglu_forward_cpu(p); });
  const SwigluScales h_scales = swiglu_scales(c, {actual.gate_up, zeros});
  expect_close(actual.h, doubles(h), kType, [&](size_t i) { return 0x1p-15 * h_scales.h[i]; });

  const std::vector<float> dy = random_reals(kType, rows, depth, 3);
  const std::vector<float> weight = random_reals(kType, depth, width, 4);
  const std::vector<float> gate_up = random_reals(kType, rows, 2 * width, 5);
  const std::vector<float> dh = rounded(kType, multiplied<float>(dy, weight, rows, width, depth));
  const std::vector<double> dh_sums =
      multiplied<double>(magnitudes(dy), magnitudes(weight), rows, width, depth);
  const SwigluNumbers numbers = {gate_up, dh};
  const SwigluGradient expected = swiglu_backward<HostBytes>(
      c, numbers, [](const SwigluBackwardParams& p) { swiglu_backward_cpu(p); });
  const SwigluGradient gradient = backward(sizes, dy, weight, gate_up);
  // What dh may be off by: its sum's error, and a step, to which either may be rounded.
  SwigluNumbers slack = numbers;
  for (size_t i = 0; i < dh.size(); ++i) {
    slack.dh[i] = static_cast<float>(2 * kSumError * dh_sums[i] + 0x1p-7 * std::abs(dh[i]));
  }
  const SwigluScales scales = swiglu_scales(c, numbers), slacks = swiglu_scales(c, slack);
  expect_close(gradient.gate_up, doubles(expected.gate_up), kType,
               [&](size_t i) { return slacks.gate_up[i] + 0x1p-15 * scales.gate_up[i]; });
  expect_close(gradient.h, doubles(expected.h), kType,
               [&](size_t i) { return 0x1p-15 * scales.h[i]; });
}

// Every special gate with every special `up`, from rows with one number that is not zero.
TEST_F(SwigluProductCuda, ForwardTakesExtremeNumbersAsThePlainKernelsDo) {
  const auto count = static_cast<int64_t>(kSpecials.size());
  const Sizes sizes = {130, count * count, 384};
  std::vector<float> x(static_cast<size_t>(sizes.rows * sizes.depth));
  for (int64_t row = 0; row < sizes.rows; ++row) x[row * sizes.depth] = 1.0f;
  std::vector<float> weight(static_cast<size_t>(2 * sizes.width * sizes.depth));
  for (int64_t i = 0; i < sizes.width; ++i) {
    weight[i * sizes.depth] = kSpecials[i % count];
    weight[(sizes.width + i) * sizes.depth] = kSpecials[i / count];
  }
  const Forward actual = forward(sizes, x, weight);
  std::vector<float> expected(actual.gate_up.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    // A sum that begins with zero has no -0.
    expected[i] = 0.0f + weight[i % (2 * sizes.width) * sizes.depth];
  }
  expected = rounded(kType, expected);
  expect_same_numbers(actual.gate_up, expected);
  expect_same_numbers(actual.h, plain_forward(sizes, expected));
}

// Besides, with every special dh.
TEST_F(SwigluProductCuda, BackwardTakesExtremeNumbersAsThePlainKernelsDo) {
  const auto count = static_cast<int64_t>(kSpecials.size());
  const Sizes sizes = {count * count, 256, 512};
  std::vector<float> dy(static_cast<size_t>(sizes.rows * sizes.depth));
  SwigluNumbers numbers;
  for (int64_t row = 0; row < sizes.rows; ++row) {
    dy[row * sizes.depth] = 1.0f;
    for (int64_t i = 0; i < 2 * sizes.width; ++i) {
      numbers.gate_up.push_back(kSpecials[i < sizes.width ? row % count : row / count]);
    }
    for (int64_t i = 0; i < sizes.width; ++i) {
      numbers.dh.push_back(0.0f + kSpecials[i % count]);
    }
  }
  std::vector<float> weight(static_cast<size_t>(sizes.depth * sizes.width));
  for (int64_t i = 0; i < sizes.width; ++i) weight[i] = kSpecials[i % count];
  numbers.gate_up = rounded(kType, numbers.gate_up);
  numbers.dh = rounded(kType, numbers.dh);
  const SwigluGradient expected = plain_backward(sizes, numbers);
  const SwigluGradient actual = backward(sizes, dy, weight, numbers.gate_up);
  expect_same_numbers(actual.gate_up, expected.gate_up);
  expect_same_numbers(actual.h, expected.h);
}

TEST_F(SwigluProductCuda, ARowNeverTouchesAnothers) {
  const Sizes sizes = {200, 256, 512};
  constexpr int64_t kPoisoned = 131;
  std::vector<float> x = small_numbers(sizes.rows * sizes.depth, 1.0f, 1);
  const std::vector<float> weight = small_numbers(2 * sizes.width * sizes.depth, 0x1p-5f, 2);
  const std::vector<float> down = small_numbers(sizes.depth * sizes.width, 0x1p-5f, 3);
  Forward before = forward(sizes, x, weight);
  SwigluGradient gradient = backward(sizes, x, down, before.gate_up);
  x[kPoisoned * sizes.depth + 77] = kNan;
  const auto poison = [&](std::vector<float>* values, int64_t width) {
    std::fill_n(values->begin() + kPoisoned * width, width, kNan);
  };
  const Forward after = forward(sizes, x, weight);
  const SwigluGradient poisoned = backward(sizes, x, down, before.gate_up);
  poison(&before.gate_up, 2 * sizes.width);
  poison(&before.h, sizes.width);
  poison(&gradient.gate_up, 2 * sizes.width);
  expect_same_numbers(after.gate_up, before.gate_up);
  expect_same_numbers(after.h, before.h);
  expect_same_numbers(poisoned.gate_up, gradient.gate_up);
  expect_same_numbers(poisoned.h, gradient.h);
}

TEST_F(SwigluProductCuda, RefusesWhatDoesNotFit) {
  uint8_t* const at = reinterpret_cast<uint8_t*>(uintptr_t{4096});
  const SwigluProductForwardParams forward = {8, 128, 384, at, at, at, at};
  EXPECT_TRUE(swiglu_product_forward_fits(forward));
  const auto refuses_forward = [&](auto change) {
    SwigluProductForwardParams params = forward;
    change(params);
    EXPECT_FALSE(swiglu_product_forward_fits(params));
    EXPECT_EQ(swiglu_product_forward_cuda(params, stream_), cudaErrorInvalidValue);
  };
  for (const int64_t rows : {int64_t{-1}, int64_t{0}, int64_t{1} << 40}) {
    refuses_forward([&](auto& params) { params.rows = rows; });
  }
  for (const int64_t width : {0, -128, 64, 129, 704}) {
    refuses_forward([&](auto& params) { params.width = width; });
  }
  for (const int64_t depth : {0, -64, 320, 400}) {
    refuses_forward([&](auto& params) { params.depth = depth; });
  }
  refuses_forward([&](auto& params) { params.x = at + 8; });
  refuses_forward([&](auto& params) { params.weight = at + 2; });
  refuses_forward([&](auto& params) { params.gate_up = at + 8; });
  refuses_forward([&](auto& params) { params.h = nullptr; });

  const SwigluProductBackwardParams backward = {8, 256, 512, at, at, at, nullptr};
  EXPECT_TRUE(swiglu_product_backward_fits(backward));
  const auto refuses_backward = [&](auto change) {
    SwigluProductBackwardParams params = backward;
    change(params);
    EXPECT_FALSE(swiglu_product_backward_fits(params));
    EXPECT_EQ(swiglu_product_backward_cuda(params, stream_), cudaErrorInvalidValue);
  };
  refuses_backward([&](auto& params) { params.rows = 0; });
  refuses_backward([&](auto& params) { params.width = 384; });
  refuses_backward([&](auto& params) { params.depth = 448; });
  refuses_backward([&](auto& params) { params.dy = at + 8; });
  refuses_backward([&](auto& params) { params.weight = nullptr; });
  refuses_backward([&](auto& params) { params.h = at + 2; });
}

// Where few tiles, or few rows of each, leave most of any such GPU idle.
TEST_F(SwigluProductCuda, PaysForManyWholeTilesOnly) {
  void* const at = reinterpret_cast<void*>(uintptr_t{4096});
  for (const int64_t rows : {1, 100, 256}) {
    EXPECT_FALSE(swiglu_product_forward_pays({rows, 2'048, 768, at, at, at, at})) << rows;
    EXPECT_FALSE(swiglu_product_backward_pays({rows, 2'048, 768, at, at, at, nullptr})) << rows;
  }
  EXPECT_FALSE(swiglu_product_forward_pays({64, 14'336, 4'096, at, at, at, at}));
  EXPECT_FALSE(swiglu_product_backward_pays({64, 14'336, 4'096, at, at, at, at}));
  EXPECT_TRUE(swiglu_product_forward_pays({32'768, 2'048, 768, at, at, at, at}));
  EXPECT_TRUE(swiglu_product_backward_pays({32'768, 2'048, 768, at, at, at, at}));
  EXPECT_FALSE(swiglu_product_forward_pays({32'768, 2'048, 320, at, at, at, at}));
}

}  // namespace
}  // namespace tessera::kernels
