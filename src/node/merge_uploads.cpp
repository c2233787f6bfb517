#include "merge_uploads.h"

#include <algorithm>

#include "tessera/kernels/merge_wire.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint64_t kReadBytes = uint64_t{512} << 10;  // in one call

Status read_range(ports::BlobLink& blobs, const ReduceInputs& inputs, const Digest& object, const core::ShardTask& task) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> bytes, blobs.get({object}));
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, checked_upload(inputs, object, bytes.at(0)));
  const uint64_t step = std::max<uint64_t>(1, kReadBytes / manifest.chunk_bytes);
  for (uint64_t at = 0; at < task.block_count; at += step) {
    TESSERA_RETURN_IF_ERROR(
        get_chunks(blobs, manifest, task.first_block + at, std::min(step, task.block_count - at)).status());
  }
  return ok_status();
}

}  // namespace

StatusOr<core::ObjectManifest> checked_upload(const ReduceInputs& inputs, const Digest& object, std::string_view bytes) {
  auto manifest = core::ObjectManifest::decode(bytes);
  if (!manifest.ok()) return annotate(manifest.status(), "upload " + object.brief());
  const Codec format = inputs.merge.upload_format;
  const uint64_t total = kernels::merge_run_bytes(format, inputs.values(), inputs.merge.block_values);
  const uint64_t chunk = kernels::merge_block_bytes(format, inputs.merge.block_values);
  if (manifest->total_bytes != total || manifest->chunk_bytes != chunk) {
    return data_loss("upload {} has {} bytes in chunks of {}; this stage has {} in chunks of {}", object.brief(),
                     manifest->total_bytes, manifest->chunk_bytes, total, chunk);
  }
  return manifest;
}

std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs, const core::ShardTask& task) {
  std::vector<Digest> unreadable;
  for (const core::UploadRef& upload : inputs.uploads) {
    const Status status = read_range(blobs, inputs, upload.object, task);
    const bool its_own_fault = absl::IsNotFound(status) || absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
                               absl::IsOutOfRange(status);
    if (its_own_fault) unreadable.push_back(upload.object);
  }
  return unreadable;
}

}  // namespace tessera::node
