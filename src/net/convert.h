// Protobuf to core values and back. to_proto() trusts its argument; from_proto() trusts nothing:
// INVALID_ARGUMENT names the field, and the output is to be thrown away then.
#pragma once

#include <tessera/v1/peer.pb.h>
#include <tessera/v1/sync.pb.h>

#include "tessera/base/status.h"
#include "tessera/core/audit_messages.h"
#include "tessera/core/messages.h"

namespace tessera::net {

inline constexpr size_t kMaxStages = 64;  // a lease's counted_stages has a bit for each
inline constexpr size_t kMaxLeases = 1024;
inline constexpr size_t kMaxPeers = 100000;
inline constexpr size_t kMaxShards = 65536;
inline constexpr size_t kMaxShortText = 256;  // addresses, devices, versions
inline constexpr size_t kMaxReason = 4096;    // sentences for people
inline constexpr size_t kMaxArgument = 64 << 10;
inline constexpr size_t kMaxRunSpecBytes = 1 << 20;
// Parses a validator's report; what is wrong with it, or nothing.
std::string flaw_of(const std::string& bytes, core::ValidatorReport* report);
inline constexpr size_t kMaxSegmentBytes = 256 << 10;
inline constexpr size_t kMaxDataPlanBytes = 3 << 20;

void to_proto(const core::Registration& in, v1::Registration* out);
void to_proto(const core::RegisterAnswer& in, v1::RegisterAnswer* out);
void to_proto(const core::Receipt& in, v1::Receipt* out);
void to_proto(const core::UploadCommit& in, v1::UploadCommit* out);
void to_proto(const core::UploadMeasure& in, v1::UploadMeasure* out);
void to_proto(const core::ShardCommit& in, v1::ShardCommit* out);
void to_proto(const core::UnreadableResult& in, v1::UnreadableResult* out);
void to_proto(const core::MergeApplied& in, v1::MergeApplied* out);
void to_proto(const core::MinerStatus& in, v1::MinerStatus* out);
void to_proto(const core::CheckpointCommit& in, v1::CheckpointCommit* out);
void to_proto(const core::SyncRequest& in, v1::SyncRequest* out);

void to_proto(const core::Lease& in, v1::Lease* out);
void to_proto(const core::UploadRef& in, v1::UploadRef* out);
void to_proto(const core::ShardTask& in, v1::ShardTask* out);
void to_proto(const core::ResultCopy& in, v1::ResultCopy* out);
void to_proto(const core::ShardResult& in, v1::ShardResult* out);
void to_proto(const core::SealedResult& in, v1::SealedResult* out);
void to_proto(const core::MergeDirective& in, v1::MergeDirective* out);
void to_proto(const core::Peer& in, v1::PeerEntry* out);
void to_proto(const core::Assignment& in, v1::Assignment* out);
void to_proto(const core::SyncAnswer& in, v1::SyncAnswer* out);

Status from_proto(const v1::Registration& in, core::Registration* out);
Status from_proto(const v1::RegisterAnswer& in, core::RegisterAnswer* out);
Status from_proto(const v1::Receipt& in, core::Receipt* out);
Status from_proto(const v1::UploadCommit& in, core::UploadCommit* out);
Status from_proto(const v1::UploadMeasure& in, core::UploadMeasure* out);
Status from_proto(const v1::ShardCommit& in, core::ShardCommit* out);
Status from_proto(const v1::UnreadableResult& in, core::UnreadableResult* out);
Status from_proto(const v1::MergeApplied& in, core::MergeApplied* out);
Status from_proto(const v1::MinerStatus& in, core::MinerStatus* out);
Status from_proto(const v1::CheckpointCommit& in, core::CheckpointCommit* out);
Status from_proto(const v1::SyncRequest& in, core::SyncRequest* out);

Status from_proto(const v1::Lease& in, core::Lease* out);
Status from_proto(const v1::UploadRef& in, core::UploadRef* out);
Status from_proto(const v1::ShardTask& in, core::ShardTask* out);
Status from_proto(const v1::ResultCopy& in, core::ResultCopy* out);
Status from_proto(const v1::ShardResult& in, core::ShardResult* out);
Status from_proto(const v1::SealedResult& in, core::SealedResult* out);
Status from_proto(const v1::MergeDirective& in, core::MergeDirective* out);
Status from_proto(const v1::PeerEntry& in, core::Peer* out);
Status from_proto(const v1::Assignment& in, core::Assignment* out);
Status from_proto(const v1::SyncAnswer& in, core::SyncAnswer* out);

void to_proto(const core::PeerHealth& in, v1::ProbeAnswer* out);
Status from_proto(const v1::ProbeAnswer& in, core::PeerHealth* out);

}  // namespace tessera::net
