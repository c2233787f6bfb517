// What audits find in the blob store: boundary payloads by the names that receipts have for them, and the states that
// segments begin with.
#pragma once

#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/miner_events.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Stores all of them with one call per megabyte; each is named by core::name_of().
Status put_payloads(ports::BlobLink& blobs, const std::vector<core::BoundaryPayload>& payloads);
// `payload_bytes`: of the run's boundary tensors. NOT_FOUND: nobody stored it.
StatusOr<core::BoundaryPayload> get_payload(ports::BlobLink& blobs, const Digest& name, size_t payload_bytes);

// The commitment with its names, or without a state if that could not be stored.
core::SegmentCommit store_segment(ports::BlobLink& blobs, const core::miner_effect::StoreSegment& segment,
                                  std::vector<Digest> dropped);

}  // namespace tessera::node
