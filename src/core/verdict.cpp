#include "tessera/core/verdict.h"

namespace tessera::core {

const char* name_of(VerdictKind kind) {
  switch (kind) {
    case VerdictKind::kAuditedWork: return "audited work";
    case VerdictKind::kMergeShard: return "merge shard";
    case VerdictKind::kMergeUpload: return "merge upload";
    case VerdictKind::kReceipt: return "receipt";
    case VerdictKind::kCommitment: return "commitment";
    case VerdictKind::kInfrastructure: return "infrastructure";
  }
  return "unknown";
}

}  // namespace tessera::core
