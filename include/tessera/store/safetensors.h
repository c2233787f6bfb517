// Safetensors files (https://github.com/huggingface/safetensors, format of the header): u64 header length, JSON header,
// raw little-endian data. Written with atomic replacement; read without trust.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::store {

struct SafeTensor {
  std::string name;
  std::string dtype;            // "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  std::string_view data;        // writer: borrowed; reader: into SafetensorsFile::bytes
};

struct SafetensorsFile {
  std::string bytes;            // the whole file; tensors point into it. Move-only use: keep it where it is
  std::vector<SafeTensor> tensors;
  std::map<std::string, std::string> metadata;
  const SafeTensor* find(std::string_view name) const;
};

StatusOr<std::string> encode_safetensors(const std::vector<SafeTensor>& tensors,
                                         const std::map<std::string, std::string>& metadata);
Status write_safetensors(const std::string& path, const std::vector<SafeTensor>& tensors,
                         const std::map<std::string, std::string>& metadata);
// Checks header length, JSON, dtypes, shapes, and that offsets tile the data without overlap or gap. Errors name `origin`.
StatusOr<std::unique_ptr<SafetensorsFile>> parse_safetensors(std::string bytes, const std::string& origin);
StatusOr<std::unique_ptr<SafetensorsFile>> read_safetensors(const std::string& path);

}  // namespace tessera::store
