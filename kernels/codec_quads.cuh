// Quads (four neighbouring columns of a row) between memory and registers.
#pragma once

#include <cuda_runtime_api.h>

#include "codec_math.h"
#include "tessera/base/codec.h"

namespace tessera::kernels {

template <Codec kCodec>
struct CodecTraits {
  static constexpr int kBits = bits_of(kCodec);
  static constexpr bool kInteger = kCodec == Codec::kInt8 || kCodec == Codec::kInt4;
  static constexpr float kLevels = kCodec == Codec::kInt8 ? 127.0f : 7.0f;
};

__device__ __forceinline__ void load_floats(const float* source, int count, bool aligned,
                                            float (&values)[4]) {
  if (aligned) {
    const float4 quad = __ldg(reinterpret_cast<const float4*>(source));
    values[0] = quad.x, values[1] = quad.y, values[2] = quad.z, values[3] = quad.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = i < count ? __ldg(source + i) : 0.0f;
}

// The low `bytes` bytes of a word or of two, first byte lowest.
template <class Word>
__device__ __forceinline__ void store_word(uint8_t* target, Word word, int bytes, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Word*>(target) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Word)); ++i) {
    if (i < bytes) target[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}

template <class Word>
__device__ __forceinline__ Word load_word(const uint8_t* source, int bytes, bool aligned) {
  if (aligned) return __ldg(reinterpret_cast<const Word*>(source));
  Word word = 0;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Word)); ++i) {
    if (i < bytes) word = static_cast<Word>(word | Word{__ldg(source + i)} << (8 * i));
  }
  return word;
}

// Writes `count` codes of a quad. Floats come as bits, integers as numbers.
template <Codec kCodec>
__device__ __forceinline__ void store_quad(uint8_t* target, const uint32_t (&codes)[4], int count,
                                           bool aligned) {
  if constexpr (kCodec == Codec::kFp32) {
    if (aligned) {
      *reinterpret_cast<uint4*>(target) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) store_word<uint32_t>(target + 4 * i, codes[i], 4, false);
    }
  } else if constexpr (kCodec == Codec::kBf16) {
    const uint64_t low = codes[0] | (codes[1] << 16);
    const uint64_t high = codes[2] | (codes[3] << 16);
    store_word<uint64_t>(target, low | (high << 32), 2 * count, aligned);
  } else if constexpr (kCodec == Codec::kInt8) {
    const uint32_t word = (codes[0] & 0xffu) | ((codes[1] & 0xffu) << 8) |
                          ((codes[2] & 0xffu) << 16) | (codes[3] << 24);
    store_word<uint32_t>(target, word, count, aligned);
  } else {
    const uint32_t word = (codes[0] & 0xfu) | ((codes[1] & 0xfu) << 4) | ((codes[2] & 0xfu) << 8) |
                          ((codes[3] & 0xfu) << 12);
    store_word<uint16_t>(target, static_cast<uint16_t>(word), (count + 1) / 2, aligned);
  }
}

template <Codec kCodec>
__device__ __forceinline__ void load_quad(const uint8_t* source, int count, bool aligned,
                                          float scale, float power, float (&values)[4]) {
  if constexpr (kCodec == Codec::kFp32) {
    if (aligned) {
      load_floats(reinterpret_cast<const float*>(source), 4, true, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = float_of_bits(i < count ? load_word<uint32_t>(source + 4 * i, 4, false) : 0u);
    }
  } else if constexpr (kCodec == Codec::kBf16) {
    const uint64_t word =
        load_word<unsigned long long>(source, 2 * count, aligned);  // the type __ldg knows
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = float_of_bfloat16(static_cast<uint16_t>(word >> (16 * i)));
    }
  } else if constexpr (kCodec == Codec::kInt8) {
    const uint32_t word = load_word<uint32_t>(source, count, aligned);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = dequantised(static_cast<int8_t>(word >> (8 * i)), scale, power);
    }
  } else {
    const uint32_t word = load_word<uint16_t>(source, (count + 1) / 2, aligned);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = dequantised(int4_of_nibble(word >> (4 * i)), scale, power);
    }
  }
}

}  // namespace tessera::kernels
