// The codecs on the GPU against the CPU reference: equal bytes, equal decoded bits, nothing outside
// the outputs.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "kernels/codec_fixture.h"
#include "kernels/device_fixture.h"

namespace tessera::kernels {
namespace {

constexpr Codec kCodecs[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4};

struct Misalignment {
  size_t input = 0;    // a multiple of 4
  size_t payload = 0;  // any
};

class CodecCuda : public CudaTest {
 protected:
  Encoded encode_on_device(const std::vector<float>& input, int64_t rows, int64_t width,
                           Codec codec, const EncodeOptions& options, Misalignment misalignment) {
    Encoded encoded;
    encoded.payload.resize(payload_bytes(codec, rows, width));
    DeviceBytes device_input(input.size() * sizeof(float), misalignment.input);
    DeviceBytes device_payload(encoded.payload.size(), misalignment.payload);
    DeviceBytes device_exponent(sizeof(int32_t));
    device_input.write(input.data());
    EncodeParams params =
        params_of(reinterpret_cast<const float*>(device_input.data()), rows, width, codec, options);
    params.payload = device_payload.data();
    params.exponent = reinterpret_cast<int32_t*>(device_exponent.data());
    EXPECT_EQ(encode_cuda(params, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    device_payload.read(encoded.payload.data());
    device_exponent.read(&encoded.exponent);
    return encoded;
  }

  std::vector<float> decode_on_device(const Encoded& encoded, int64_t rows, int64_t width,
                                      Codec codec, Misalignment misalignment) {
    std::vector<float> output(rows * width);
    DeviceBytes device_payload(encoded.payload.size(), misalignment.payload);
    DeviceBytes device_output(output.size() * sizeof(float), misalignment.input);
    device_payload.write(encoded.payload.data());
    EXPECT_EQ(decode_cuda({.payload = device_payload.data(),
                           .exponent = encoded.exponent,
                           .rows = rows,
                           .width = width,
                           .codec = codec,
                           .output = reinterpret_cast<float*>(device_output.data())},
                          stream_),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    device_output.read(output.data());
    return output;
  }

  // Encodes and decodes on both sides, and compares every bit.
  void expect_equal(const std::vector<float>& input, int64_t rows, int64_t width, Codec codec,
                    const EncodeOptions& options, Misalignment misalignment = {}) {
    SCOPED_TRACE(name_of(codec) + " " + std::to_string(rows) + "x" + std::to_string(width) +
                 (options.normalise ? " normalised" : "") +
                 (options.stochastic ? " stochastic" : "") + " payload at " +
                 std::to_string(misalignment.payload) + " input at " +
                 std::to_string(misalignment.input));
    const Encoded expected = encode(input, rows, width, codec, options);
    const Encoded actual = encode_on_device(input, rows, width, codec, options, misalignment);
    ASSERT_EQ(actual.exponent, expected.exponent);
    for (size_t i = 0; i < expected.payload.size(); ++i) {
      ASSERT_EQ(actual.payload[i], expected.payload[i])
          << "byte " << i << " of " << expected.payload.size() << ", of which "
          << scale_bytes(codec, rows) << " are scales";
    }
    expect_equal_decoding(expected, rows, width, codec, misalignment);
  }

  void expect_equal_decoding(const Encoded& encoded, int64_t rows, int64_t width, Codec codec,
                             Misalignment misalignment) {
    const std::vector<float> expected = decode(encoded, rows, width, codec);
    const std::vector<float> actual = decode_on_device(encoded, rows, width, codec, misalignment);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(float)), 0)
          << "number " << i << ": " << actual[i] << " instead of " << expected[i];
    }
  }
};

TEST_F(CodecCuda, GivesTheBytesOfTheCpuForEveryWidthUpTo300) {
  for (int64_t width = 1; width <= 300; width += width < 70 ? 1 : 23) {
    const int64_t rows = 1 + width % 7 * 11;
    const std::vector<float> input = random_rows(rows, width, width);
    for (const Codec codec : kCodecs) {
      for (const bool normalise : {false, true}) {
        for (const bool stochastic : {false, true}) {
          expect_equal(input, rows, width, codec,
                       {normalise, stochastic, 0x123456789abcdefull + width, 0xfedcba987ull});
        }
      }
    }
  }
}

TEST_F(CodecCuda, GivesTheBytesOfTheCpuForWideRows) {
  for (const int64_t width : {768, 1023, 2048, 4097, 8192}) {
    for (const int64_t rows : {1, 2, 33}) {
      const std::vector<float> input = random_rows(rows, width, width + rows);
      for (const Codec codec : kCodecs) {
        for (const bool normalise : {false, true}) {
          expect_equal(input, rows, width, codec, {normalise, normalise, 5, 6});
        }
      }
    }
  }
}

// More rows than one round of the grid takes (8192 blocks of 64, 32, 16 or 8 rows).
TEST_F(CodecCuda, GivesTheBytesOfTheCpuForMoreRowsThanTheGrid) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{530'001, 4}, {66'001, 132}}) {
    std::vector<float> input = random_rows(1009, width, rows);
    const size_t period = input.size();
    input.resize(rows * width);
    for (size_t i = period; i < input.size(); ++i) input[i] = input[i - period];
    input[input.size() - 2] = 3000.0f;  // the last row sets the exponent
    for (const Codec codec : kCodecs) {
      expect_equal(input, rows, width, codec, {.normalise = false, .stochastic = true, .seed = 1});
    }
    expect_equal(input, rows, width, Codec::kInt4, {.normalise = true});
  }
}

TEST_F(CodecCuda, GivesTheBytesOfTheCpuAtAnyAlignment) {
  for (const int64_t width : {4, 20, 64, 200, 1024}) {
    for (const int64_t rows : {7, 8}) {
      const std::vector<float> input = random_rows(rows, width, 3 * width);
      for (const Codec codec : kCodecs) {
        for (const size_t payload : {0, 1, 2, 4, 6, 8}) {
          for (const size_t offset : {0, 4, 8}) {
            expect_equal(input, rows, width, codec, {true, true, 8, 9}, {offset, payload});
          }
        }
      }
    }
  }
}

TEST_F(CodecCuda, GivesTheBytesOfTheCpuForExtremeNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kLargest = std::numeric_limits<float>::max();
  constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
  const std::vector<std::vector<float>> specials = {
      {0.0f, -0.0f},           {kSmallest, -1000 * kSmallest},
      {0x1p-127f, -0x1p-130f}, {kLargest, -kLargest},
      {kNan, -kNan},           {kInfinity, -kInfinity},
      {1e30f, 1e19f},          {1e-30f, -1e-20f},
      {kNan, kInfinity}};
  for (const int64_t width : {2, 5, 20, 40, 150, 1024}) {
    const int64_t rows = 2 * static_cast<int64_t>(specials.size());
    for (int placement = 0; placement < 3; ++placement) {
      // 0: special rows among usual ones; 1: only special ones; 2: only subnormal numbers and
      // zeros.
      std::vector<float> input = random_rows(rows, width, width);
      for (int64_t row = 0; row < rows; ++row) {
        if (placement == 0 && row % 2 == 0) continue;
        const auto& special = specials[placement == 2 ? row % 3 : row / 2];
        for (int64_t column = 0; column < width; ++column) {
          const bool fill = placement != 0 || column % 5 == 1;
          if (fill) input[row * width + column] = special[column % 2];
        }
      }
      for (const Codec codec : kCodecs) {
        for (const bool normalise : {false, true}) {
          expect_equal(input, rows, width, codec, {normalise, false, 0, 0});
          expect_equal(input, rows, width, codec, {normalise, true, 1, 1});
        }
      }
    }
  }
}

TEST_F(CodecCuda, DecodesHostilePayloadsAsTheCpuDoes) {
  Prng prng(4);
  for (const Codec codec : kCodecs) {
    if (codec == Codec::kFp32) continue;  // copied bits: any of them are numbers
    for (const int64_t width : {3, 8, 64, 257}) {
      for (const int32_t exponent : {std::numeric_limits<int32_t>::min(), -130, 0, 40, 130,
                                     std::numeric_limits<int32_t>::max()}) {
        Encoded encoded;
        encoded.payload.resize(payload_bytes(codec, 40, width));
        for (uint8_t& byte : encoded.payload) byte = static_cast<uint8_t>(prng.next());
        encoded.exponent = exponent;
        expect_equal_decoding(encoded, 40, width, codec, {});
        expect_equal_decoding(encoded, 40, width, codec, {4, 1});
      }
    }
  }
}

TEST_F(CodecCuda, NoRowsWriteOnlyTheExponent) {
  for (const Codec codec : kCodecs) {
    const Encoded encoded = encode_on_device({}, 0, 20, codec, {}, {});
    EXPECT_EQ(encoded.exponent, has_scales(codec) ? -126 : 0) << name_of(codec);
    EXPECT_EQ(decode_cuda({.rows = 0, .width = 20, .codec = codec}, stream_), cudaSuccess);
  }
}

TEST_F(CodecCuda, RefusesWhatTheCpuAbortsOn) {
  DeviceBytes exponent(sizeof(int32_t));
  EncodeParams params = params_of(nullptr, 1, 4, Codec::kInt8, {});
  params.exponent = reinterpret_cast<int32_t*>(exponent.data());
  EXPECT_EQ(encode_cuda(params, stream_), cudaErrorInvalidValue);
  params.rows = 0;
  params.width = 0;
  EXPECT_EQ(encode_cuda(params, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(decode_cuda({.rows = 1, .width = 4}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tessera::kernels
