// An upload of a merge, all of it at once.
#pragma once

#include <vector>

#include "tessera/node/merge_transfer.h"

namespace tessera::test {

// Commits and stores all of it.
inline StatusOr<node::DeltaUpload> upload_delta(ports::BlobLink& blobs, const core::MergeSpec& merge, const std::vector<float>& base,
                                   const std::vector<float>& snapshot, const std::vector<float>& residual,
                                   const core::Moments* moments = nullptr) {
  node::KeptBlobs kept(blobs);
  TESSERA_ASSIGN_OR_RETURN(node::DeltaUpload upload, node::commit_delta(kept, merge, base, snapshot, residual, 1, moments));
  TESSERA_RETURN_IF_ERROR(node::store_delta(kept, upload.manifest, 1, 2, [] { return false; }));
  return upload;
}

}  // namespace tessera::test
