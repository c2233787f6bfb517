// Safetensors files (https://github.com/huggingface/safetensors, format of the header): u64 header
// length, JSON header, raw little-endian data. Written with atomic replacement; read without trust
// (docs/formats/checkpoint-files.md). Functions are thread-safe; a SafetensorsFile does not change
// once it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::store {

// The reference implementation's limit.
inline constexpr size_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxSafetensorsRank = 32;

struct SafeTensor {
  std::string name;
  std::string dtype;           // "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;  // empty: a scalar
  std::string_view data;       // writer: borrowed; reader: into SafetensorsFile::bytes
};

struct SafetensorsFile {
  SafetensorsFile() = default;
  SafetensorsFile(const SafetensorsFile&) = delete;  // tensors point into bytes
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  std::string bytes;                // the whole file
  std::vector<SafeTensor> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  const SafeTensor* find(std::string_view name) const;
};

// Bytes of one element; 0 for a dtype that is unknown.
size_t safetensors_element_bytes(std::string_view dtype);

// INVALID_ARGUMENT, naming the tensor: a name twice, an unknown dtype, data that does not have the
// size of the shape. Tensors are stored by falling element size, then by name: every one is aligned
// to its element, and one set of tensors has one encoding.
StatusOr<std::string> encode_safetensors(const std::vector<SafeTensor>& tensors,
                                         const std::map<std::string, std::string>& metadata);
// The same bytes to a file, without making them a copy.
Status write_safetensors(const std::string& path, const std::vector<SafeTensor>& tensors,
                         const std::map<std::string, std::string>& metadata);
// Checks header length, JSON, dtypes, shapes, and that offsets tile the data without overlap or
// gap. Errors name `origin`.
StatusOr<std::unique_ptr<SafetensorsFile>> parse_safetensors(std::string bytes,
                                                             const std::string& origin);
StatusOr<std::unique_ptr<SafetensorsFile>> read_safetensors(const std::string& path);

}  // namespace tessera::store
