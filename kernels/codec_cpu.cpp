// The reference of the codecs: it defines the bytes.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "codec_math.h"
#include "tessera/base/status.h"
#include "tessera/kernels/codec.h"

namespace tessera::kernels {
namespace {

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");

// Columns coded at a time, in arrays the compiler can vectorise over.
constexpr int64_t kChunk = 256;
static_assert(kChunk % 4 == 0, "a chunk holds whole blocks of random words");

void check_sizes(int64_t rows, int64_t width) {
  TESSERA_CHECK(rows >= 0);
  TESSERA_CHECK(width >= 1 && width <= kMaximumWidth);
}

float levels_of(Codec codec) { return codec == Codec::kInt8 ? 127.0f : 7.0f; }

// The order of the header: 32 lanes, then by halves.
float sum_of_squares(const float* row, int64_t width) {
  constexpr int64_t kLanes = 32;
  float lanes[kLanes] = {};
  int64_t column = 0;
  for (; column + kLanes <= width; column += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += row[column + lane] * row[column + lane];
    }
  }
  for (int64_t lane = 0; column + lane < width; ++lane) {
    lanes[lane] += row[column + lane] * row[column + lane];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

RowStatistics measure(const EncodeParams& params, const float* row) {
  uint32_t peak_bits = 0;
  for (int64_t column = 0; column < params.width; ++column) {
    peak_bits = std::max(peak_bits, bits_of_float(row[column]) & kMagnitudeMask);
  }
  if (!params.normalise) return {peak_bits, 1.0f};
  const float sum = sum_of_squares(row, params.width);
  return {peak_bits, normalising_divisor(sum, params.width, params.epsilon)};
}

// ---- fp32 and bf16

void encode_float_row(const EncodeParams& params, const float* row, uint8_t* codes) {
  const float divisor = params.normalise ? measure(params, row).divisor : 1.0f;
  for (int64_t column = 0; column < params.width; ++column) {
    const float value = row[column] / divisor;
    if (params.codec == Codec::kFp32) {
      const float stored = canonical_nan(value);
      std::memcpy(codes + column * 4, &stored, 4);
    } else {
      const uint16_t stored = bfloat16_of_float(value);
      std::memcpy(codes + column * 2, &stored, 2);
    }
  }
}

void decode_float_row(const DecodeParams& params, const uint8_t* codes, float* row) {
  if (params.codec == Codec::kFp32) {
    std::memcpy(row, codes, static_cast<size_t>(params.width) * 4);
    return;
  }
  for (int64_t column = 0; column < params.width; ++column) {
    uint16_t stored;
    std::memcpy(&stored, codes + column * 2, 2);
    row[column] = float_of_bfloat16(stored);
  }
}

// ---- int8 and int4

void store_codes(Codec codec, const int32_t* values, int64_t count, uint8_t* codes) {
  if (codec == Codec::kInt8) {
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(values[i]);
    return;
  }
  for (int64_t i = 0; i + 1 < count; i += 2) {
    codes[i / 2] = static_cast<uint8_t>((values[i] & 0xf) | ((values[i + 1] & 0xf) << 4));
  }
  if (count % 2 != 0) codes[count / 2] = static_cast<uint8_t>(values[count - 1] & 0xf);
}

// Whole blocks for `count` columns, so up to three words more; `quad` is the first block's number.
void fill_random_words(const EncodeParams& params, uint64_t quad, int64_t count, uint32_t* words) {
  for (int64_t i = 0; i < count; i += 4, ++quad) {
    const PhiloxBlock block = rounding_words(params.seed, params.stream, quad);
    std::memcpy(words + i, block.word, sizeof(block.word));
  }
}

// `first_quad` is the number, within the frame, of the first four columns of this row.
void encode_integer_row(const EncodeParams& params, const float* row, float divisor,
                        float inverse_power, float scale, uint64_t first_quad, uint8_t* codes) {
  const float levels = levels_of(params.codec);
  float scaled[kChunk];
  uint32_t random_words[kChunk];
  int32_t values[kChunk];
  for (int64_t start = 0; start < params.width; start += kChunk) {
    const int64_t count = std::min(kChunk, params.width - start);
    for (int64_t i = 0; i < count; ++i) {
      scaled[i] = clamped(row[start + i] / divisor * inverse_power / scale, levels);
    }
    if (params.stochastic) {
      fill_random_words(params, first_quad + static_cast<uint64_t>(start) / 4, count, random_words);
      for (int64_t i = 0; i < count; ++i) {
        values[i] = round_stochastically(scaled[i], random_words[i]);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) values[i] = round_to_nearest(scaled[i]);
    }
    const size_t offset = row_code_bytes(params.codec, static_cast<size_t>(start));
    store_codes(params.codec, values, count, codes + offset);
  }
}

void encode_integers(const EncodeParams& params) {
  const size_t row_bytes = row_code_bytes(params.codec, static_cast<size_t>(params.width));
  const uint64_t quads = (static_cast<uint64_t>(params.width) + 3) / 4;
  uint8_t* codes = params.payload + scale_bytes(params.codec, static_cast<size_t>(params.rows));
  std::vector<RowStatistics> statistics(static_cast<size_t>(params.rows));
  int32_t exponent = kSmallestExponent;
  for (int64_t row = 0; row < params.rows; ++row) {
    statistics[row] = measure(params, params.input + row * params.width);
    const float peak = peak_of(statistics[row]);
    if (is_finite_peak(peak)) exponent = std::max(exponent, exponent_of_peak(peak));
  }
  *params.exponent = exponent;

  const float inverse_power = power_of_two(-exponent);
  for (int64_t row = 0; row < params.rows; ++row) {
    const RowScale scale =
        row_scale(peak_of(statistics[row]), inverse_power, levels_of(params.codec));
    std::memcpy(params.payload + row * 2, &scale.half, 2);
    uint8_t* row_codes = codes + row * row_bytes;
    if (scale.silent) {
      std::memset(row_codes, 0, row_bytes);
    } else {
      encode_integer_row(params, params.input + row * params.width, statistics[row].divisor,
                         inverse_power, scale.scale, row * quads, row_codes);
    }
  }
}

void decode_integer_row(const DecodeParams& params, const uint8_t* codes, float scale, float power,
                        float* row) {
  if (params.codec == Codec::kInt8) {
    for (int64_t column = 0; column < params.width; ++column) {
      row[column] = dequantised(static_cast<int8_t>(codes[column]), scale, power);
    }
    return;
  }
  for (int64_t column = 0; column < params.width; ++column) {
    const uint32_t nibble = codes[column / 2] >> (column % 2 * 4);
    row[column] = dequantised(int4_of_nibble(nibble), scale, power);
  }
}

}  // namespace

void encode_cpu(const EncodeParams& params) {
  check_sizes(params.rows, params.width);
  TESSERA_CHECK(params.exponent != nullptr);
  TESSERA_CHECK(params.rows == 0 || (params.input != nullptr && params.payload != nullptr));
  TESSERA_CHECK(!params.normalise || params.epsilon > 0.0f);
  if (has_scales(params.codec)) {
    encode_integers(params);
    return;
  }
  *params.exponent = 0;
  const size_t row_bytes = row_code_bytes(params.codec, static_cast<size_t>(params.width));
  for (int64_t row = 0; row < params.rows; ++row) {
    encode_float_row(params, params.input + row * params.width, params.payload + row * row_bytes);
  }
}

void decode_cpu(const DecodeParams& params) {
  check_sizes(params.rows, params.width);
  TESSERA_CHECK(params.rows == 0 || (params.output != nullptr && params.payload != nullptr));
  const size_t row_bytes = row_code_bytes(params.codec, static_cast<size_t>(params.width));
  const uint8_t* codes =
      params.payload + scale_bytes(params.codec, static_cast<size_t>(params.rows));
  const float power = power_of_two(params.exponent);
  for (int64_t row = 0; row < params.rows; ++row) {
    float* output = params.output + row * params.width;
    if (has_scales(params.codec)) {
      uint16_t half;
      std::memcpy(&half, params.payload + row * 2, 2);
      decode_integer_row(params, codes + row * row_bytes, float_of_half(half), power, output);
    } else {
      decode_float_row(params, codes + row * row_bytes, output);
    }
  }
}

}  // namespace tessera::kernels
