#include "tessera/node/merge_reduce.h"

#include <algorithm>

#include "tessera/kernels/merge.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint64_t kPieceValues = 1u << 20;  // reduced at a time: bounds memory to (participants + 1) pieces

}  // namespace

StatusOr<Digest> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs) {
  const uint32_t block_bytes = inputs.block_values * sizeof(float);
  std::vector<core::ObjectManifest> manifests;
  std::vector<float> weights;
  for (const core::UploadRef& upload : inputs.uploads) {
    TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, get_manifest(blobs, upload.object));
    if (manifest.total_bytes != inputs.stage_values * sizeof(float) || manifest.chunk_bytes != block_bytes) {
      return data_loss("upload {} has {} bytes in chunks of {}; this stage has {} in chunks of {}",
                       upload.object.brief(), manifest.total_bytes, manifest.chunk_bytes,
                       inputs.stage_values * sizeof(float), block_bytes);
    }
    manifests.push_back(std::move(manifest));
    weights.push_back(upload.weight);
  }
  std::string result;
  const uint64_t blocks_per_piece = std::max<uint64_t>(1, kPieceValues / inputs.block_values);
  for (uint64_t at = 0; at < inputs.block_count; at += blocks_per_piece) {
    const uint64_t blocks = std::min(blocks_per_piece, inputs.block_count - at);
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
  return put_object(blobs, result, block_bytes);
}

}  // namespace tessera::node
