// The number formats of the wire, and the bytes they take.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

enum class Codec : uint8_t { kFp32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3 };

constexpr int bits_of(Codec codec) {
  return codec == Codec::kFp32 ? 32 : codec == Codec::kBf16 ? 16 : codec == Codec::kInt8 ? 8 : 4;
}
constexpr bool has_scales(Codec codec) { return codec == Codec::kInt8 || codec == Codec::kInt4; }
constexpr size_t row_code_bytes(Codec codec, size_t width) {
  return (width * static_cast<size_t>(bits_of(codec)) + 7) / 8;
}
// One fp16 scale a row.
constexpr size_t scale_bytes(Codec codec, size_t rows) { return has_scales(codec) ? rows * 2 : 0; }
constexpr size_t payload_bytes(Codec codec, size_t rows, size_t width) {
  return scale_bytes(codec, rows) + rows * row_code_bytes(codec, width);
}

}  // namespace tessera
