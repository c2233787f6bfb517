#include "tessera/node/merge_reduce.h"

#include <algorithm>

#include "tessera/kernels/merge.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint64_t kPieceValues = 1u << 20;  // reduced at a time: bounds memory to (participants + 1) pieces

uint32_t block_bytes_of(const ReduceInputs& inputs) { return inputs.block_values * sizeof(float); }

StatusOr<core::ObjectManifest> get_upload(ports::BlobLink& blobs, const ReduceInputs& inputs, const Digest& object) {
  TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, get_manifest(blobs, object));
  if (manifest.total_bytes != inputs.stage_values * sizeof(float) || manifest.chunk_bytes != block_bytes_of(inputs)) {
    return data_loss("upload {} has {} bytes in chunks of {}; this stage has {} in chunks of {}", object.brief(),
                     manifest.total_bytes, manifest.chunk_bytes, inputs.stage_values * sizeof(float),
                     block_bytes_of(inputs));
  }
  return manifest;
}

uint64_t blocks_per_piece(const ReduceInputs& inputs) {
  return std::max<uint64_t>(1, kPieceValues / inputs.block_values);
}

Status read_range(ports::BlobLink& blobs, const ReduceInputs& inputs, const Digest& object) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, get_upload(blobs, inputs, object));
  for (uint64_t at = 0; at < inputs.block_count; at += blocks_per_piece(inputs)) {
    const uint64_t blocks = std::min(blocks_per_piece(inputs), inputs.block_count - at);
    TESSERA_RETURN_IF_ERROR(get_chunks(blobs, manifest, inputs.first_block + at, blocks).status());
  }
  return ok_status();
}

}  // namespace

std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs) {
  std::vector<Digest> unreadable;
  for (const core::UploadRef& upload : inputs.uploads) {
    const Status status = read_range(blobs, inputs, upload.object);
    const bool its_own_fault = absl::IsNotFound(status) || absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
                               absl::IsOutOfRange(status);
    if (its_own_fault) unreadable.push_back(upload.object);
  }
  return unreadable;
}

StatusOr<Digest> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs) {
  if (inputs.uploads.empty()) return invalid_argument("a reduction of no uploads");
  std::vector<core::ObjectManifest> manifests;
  std::vector<float> weights;
  for (const core::UploadRef& upload : inputs.uploads) {
    TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, get_upload(blobs, inputs, upload.object));
    manifests.push_back(std::move(manifest));
    weights.push_back(upload.weight);
  }
  std::string result;
  for (uint64_t at = 0; at < inputs.block_count; at += blocks_per_piece(inputs)) {
    const uint64_t blocks = std::min(blocks_per_piece(inputs), inputs.block_count - at);
    std::vector<std::vector<float>> pieces;
    std::vector<const float*> pointers;
    for (const core::ObjectManifest& manifest : manifests) {
      TESSERA_ASSIGN_OR_RETURN(const std::string bytes, get_chunks(blobs, manifest, inputs.first_block + at, blocks));
      pieces.push_back(values_of(bytes));
      pointers.push_back(pieces.back().data());
    }
    std::vector<float> sum(pieces.front().size());
    kernels::weighted_sum_cpu(pointers.data(), weights.data(), pointers.size(), sum.size(), sum.data());
    result += bytes_of(sum);
  }
  return put_object(blobs, result, block_bytes_of(inputs));
}

}  // namespace tessera::node
