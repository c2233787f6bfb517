#include "tessera/store/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "store/safetensors_header.h"
#include "tessera/base/bytes.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

constexpr char kMetadataName[] = "__metadata__";
constexpr size_t kLengthBytes = 8;
constexpr size_t kHeaderAlignment =
    8;  // the largest element: the data then starts aligned for every dtype

Status check_tensor(const SafeTensor& tensor) {
  if (tensor.name.empty() || tensor.name == kMetadataName) {
    return invalid_argument("a tensor can't be named '{}'", tensor.name);
  }
  if (safetensors_element_bytes(tensor.dtype) == 0) {
    return invalid_argument("tensor '{}': unknown dtype '{}'", tensor.name, tensor.dtype);
  }
  if (tensor.shape.size() > kMaxSafetensorsRank) {
    return invalid_argument("tensor '{}': {} dimensions, the limit is {}", tensor.name,
                            tensor.shape.size(), kMaxSafetensorsRank);
  }
  const std::optional<uint64_t> bytes = safetensors_data_bytes(tensor.dtype, tensor.shape);
  if (!bytes || *bytes != tensor.data.size()) {
    return invalid_argument(
        "tensor '{}': {} bytes of data do not have the size of its shape ({}, {})", tensor.name,
        tensor.data.size(), tensor.dtype, nlohmann::json(tensor.shape).dump());
  }
  return ok_status();
}

// The tensors in the order their data is stored.
StatusOr<std::vector<const SafeTensor*>> storage_order(const std::vector<SafeTensor>& tensors) {
  std::vector<const SafeTensor*> order;
  order.reserve(tensors.size());
  for (const SafeTensor& tensor : tensors) {
    TESSERA_RETURN_IF_ERROR(check_tensor(tensor));
    order.push_back(&tensor);
  }
  const auto by_name = [](const SafeTensor* a, const SafeTensor* b) { return a->name < b->name; };
  std::sort(order.begin(), order.end(), by_name);
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->name == order[i]->name)
      return invalid_argument("tensor '{}' is there twice", order[i]->name);
  }
  std::stable_sort(order.begin(), order.end(), [](const SafeTensor* a, const SafeTensor* b) {
    return safetensors_element_bytes(a->dtype) > safetensors_element_bytes(b->dtype);
  });
  return order;
}

// Length, JSON and padding: everything in front of the data.
StatusOr<std::string> encode_front(const std::vector<const SafeTensor*>& order,
                                   const std::map<std::string, std::string>& metadata) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header[kMetadataName] = metadata;
  uint64_t offset = 0;
  for (const SafeTensor* tensor : order) {
    const uint64_t end = offset + tensor->data.size();
    header[tensor->name] = {
        {"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string json;
  try {
    json = header.dump();
  } catch (const nlohmann::json::exception& failure) {
    return invalid_argument("a tensor name or metadata text is not UTF-8: {}", failure.what());
  }
  json.append((kHeaderAlignment - json.size() % kHeaderAlignment) % kHeaderAlignment, ' ');
  if (json.size() > kMaxSafetensorsHeaderBytes) {
    return invalid_argument("a header of {} bytes; the limit is {}: write several files",
                            json.size(), kMaxSafetensorsHeaderBytes);
  }
  ByteWriter front;
  front.number(static_cast<uint64_t>(json.size()));
  front.raw(json.data(), json.size());
  return front.take();
}

Status check_tiling(const std::vector<SafetensorsEntry>& sorted, uint64_t data_bytes) {
  uint64_t offset = 0;
  for (const SafetensorsEntry& entry : sorted) {
    if (entry.begin != offset || entry.end < entry.begin) {
      return invalid_argument(
          "the data of tensor {} is [{}, {}) but should begin at {}: gap or overlap",
          safe_text(entry.name), entry.begin, entry.end, offset);
    }
    const std::optional<uint64_t> bytes = safetensors_data_bytes(entry.dtype, entry.shape);
    if (!bytes || *bytes != entry.end - entry.begin) {
      return invalid_argument("tensor {} has {} bytes of data, not the size of its shape",
                              safe_text(entry.name), entry.end - entry.begin);
    }
    offset = entry.end;
  }
  if (offset != data_bytes) {
    return invalid_argument(
        "the tensors take {} bytes, but {} bytes of data are there: truncated, or followed by more",
        offset, data_bytes);
  }
  return ok_status();
}

// Fills the tensors and metadata of `file` from its bytes.
Status parse_into(SafetensorsFile* file) {
  const std::string_view bytes = file->bytes;
  ByteReader reader(bytes);
  const uint64_t header_bytes = reader.number<uint64_t>();
  if (!reader.ok())
    return invalid_argument("{} bytes are too few for a safetensors file", bytes.size());
  if (header_bytes > kMaxSafetensorsHeaderBytes || header_bytes > reader.remaining()) {
    return invalid_argument(
        "a header of {} bytes is claimed; {} bytes follow, and the limit is {}: truncated, or not "
        "a safetensors file",
        header_bytes, reader.remaining(), kMaxSafetensorsHeaderBytes);
  }
  const std::string_view json = reader.raw(header_bytes);
  if (!json.starts_with('{')) return invalid_argument("the header does not start with '{{'");
  TESSERA_ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors_header(json));

  std::vector<SafetensorsEntry>& entries = header.entries;
  // Empty tensors share their offset with the one after them: the end decides, then the name.
  std::sort(entries.begin(), entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  TESSERA_RETURN_IF_ERROR(check_tiling(entries, reader.remaining()));
  const std::string_view data = bytes.substr(kLengthBytes + header_bytes);
  file->tensors.reserve(entries.size());
  for (SafetensorsEntry& entry : entries) {
    file->tensors.push_back({std::move(entry.name), std::move(entry.dtype), std::move(entry.shape),
                             data.substr(entry.begin, entry.end - entry.begin)});
  }
  file->metadata = std::move(header.metadata);
  return ok_status();
}

}  // namespace

const SafeTensor* SafetensorsFile::find(std::string_view name) const {
  for (const SafeTensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

size_t safetensors_element_bytes(std::string_view dtype) {
  static constexpr std::pair<std::string_view, size_t> kDtypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  for (const auto& [name, bytes] : kDtypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

StatusOr<std::string> encode_safetensors(const std::vector<SafeTensor>& tensors,
                                         const std::map<std::string, std::string>& metadata) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<const SafeTensor*> order, storage_order(tensors));
  TESSERA_ASSIGN_OR_RETURN(std::string bytes, encode_front(order, metadata));
  size_t total = bytes.size();
  for (const SafeTensor* tensor : order) total += tensor->data.size();
  bytes.reserve(total);
  for (const SafeTensor* tensor : order) bytes.append(tensor->data);
  return bytes;
}

Status write_safetensors(const std::string& path, const std::vector<SafeTensor>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  const StatusOr<std::vector<const SafeTensor*>> order = storage_order(tensors);
  if (!order.ok()) return annotate(order.status(), path);
  const StatusOr<std::string> front = encode_front(*order, metadata);
  if (!front.ok()) return annotate(front.status(), path);
  std::vector<std::string_view> pieces = {*front};
  for (const SafeTensor* tensor : *order) pieces.push_back(tensor->data);
  return write_pieces_atomic(path, pieces);
}

StatusOr<std::unique_ptr<SafetensorsFile>> parse_safetensors(std::string bytes,
                                                             const std::string& origin) {
  auto file = std::make_unique<SafetensorsFile>();
  file->bytes = std::move(bytes);
  TESSERA_RETURN_IF_ERROR(annotate(parse_into(file.get()), origin));
  return file;
}

StatusOr<std::unique_ptr<SafetensorsFile>> read_safetensors(const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(std::string bytes, read_file(path));
  return parse_safetensors(std::move(bytes), path);
}

}  // namespace tessera::store
