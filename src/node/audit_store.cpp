#include "tessera/node/audit_store.h"

#include <utility>

#include "tessera/base/log.h"
#include "tessera/core/payload_name.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr size_t kCallBytes = 1u << 20;
constexpr size_t kCallBlobs = 128;

Status name_and_store(ports::BlobLink& blobs, const core::miner_effect::StoreSegment& segment, core::SegmentCommit* commit) {
  for (const core::WeightVersion& older : segment.older) {
    TESSERA_ASSIGN_OR_RETURN(const Digest object, put_object(blobs, bytes_of(older.values), core::kMaxChunkBytes, Novelty::kNew));
    commit->older.push_back({older.version, object});
  }
  TESSERA_ASSIGN_OR_RETURN(commit->state, put_local_state(blobs, *segment.state, Novelty::kNew));
  return ok_status();
}

}  // namespace

Status put_payloads(ports::BlobLink& blobs, const std::vector<core::BoundaryPayload>& payloads) {
  std::vector<std::string> call;
  size_t bytes = 0;
  const auto flush = [&]() -> Status {
    if (call.empty()) return ok_status();
    TESSERA_RETURN_IF_ERROR(blobs.put(call).status());
    call.clear();
    bytes = 0;
    return ok_status();
  };
  for (const core::BoundaryPayload& payload : payloads) {
    std::string stored = core::stored_form(payload);
    if (!core::is_one_blob(stored.size())) {
      TESSERA_RETURN_IF_ERROR(put_object(blobs, stored).status());
      continue;
    }
    if (bytes + stored.size() > kCallBytes || call.size() >= kCallBlobs) TESSERA_RETURN_IF_ERROR(flush());
    bytes += stored.size();
    call.push_back(std::move(stored));
  }
  return flush();
}

StatusOr<core::BoundaryPayload> get_payload(ports::BlobLink& blobs, const Digest& name, size_t payload_bytes) {
  const size_t stored_bytes = payload_bytes + sizeof(core::BoundaryPayload::exponent);
  if (core::is_one_blob(stored_bytes)) {
    TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> found, blobs.get({name}));
    return core::payload_from(std::move(found.at(0)));
  }
  TESSERA_ASSIGN_OR_RETURN(std::string found, get_object(blobs, name, stored_bytes));
  return core::payload_from(std::move(found));
}

core::SegmentCommit store_segment(ports::BlobLink& blobs, const core::miner_effect::StoreSegment& segment,
                                  std::vector<Digest> dropped) {
  core::SegmentCommit commit = segment.commit;
  commit.dropped = std::move(dropped);
  if (!segment.state) return commit;  // there is nothing that could be run again
  const bool fits = segment.older.size() <= core::kMaxOlderWeights && commit.dropped.size() <= core::kMaxDroppedNames;
  const Status status = fits ? name_and_store(blobs, segment, &commit)
                             : failed_precondition("{} older weights and {} dropped payloads are more than an audit takes",
                                                   segment.older.size(), commit.dropped.size());
  if (!status.ok()) {
    spdlog::warn("the begin of segment {} could not be stored: {}; it can't be audited", commit.number, message_of(status));
    commit.state = {};
    commit.older.clear();
    commit.dropped.clear();
  }
  return commit;
}

}  // namespace tessera::node
