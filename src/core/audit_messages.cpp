#include "tessera/core/audit_messages.h"

#include <fmt/format.h>

namespace tessera::core {

std::string flaw_of(const SegmentCommit& commit) {
  if (commit.number == 0) return "its number is 0";
  if (commit.first_receipt == 0) return "its first receipt has number 0";
  if (commit.steps.size() > kMaxSegmentSteps) return fmt::format("{} steps, at most {} are taken", commit.steps.size(), kMaxSegmentSteps);
  if (commit.older.size() > kMaxOlderWeights) return fmt::format("{} older weights, at most {} are taken", commit.older.size(), kMaxOlderWeights);
  if (commit.dropped.size() > kMaxDroppedNames) return fmt::format("{} dropped payloads, at most {} are taken", commit.dropped.size(), kMaxDroppedNames);
  uint64_t newest = 0;
  for (const OlderWeights& older : commit.older) {
    if (older.version >= commit.weight_version || (&older != &commit.older.front() && older.version <= newest)) {
      return fmt::format("older weights of version {} beside version {}", older.version, commit.weight_version);
    }
    newest = older.version;
  }
  return "";
}

std::string device_kind(const std::string& device) { return device.substr(0, device.find_first_of(": ")); }

const char* name_of(AuditFinding finding) {
  switch (finding) {
    case AuditFinding::kNone:
      return "nothing";
    case AuditFinding::kActivation:
      return "activation";
    case AuditFinding::kGradient:
      return "gradient";
    case AuditFinding::kLoss:
      return "loss";
    case AuditFinding::kWeights:
      return "weights";
    case AuditFinding::kUpload:
      return "upload";
    case AuditFinding::kLog:
      return "log";
    case AuditFinding::kMissing:
      return "missing payload";
    case AuditFinding::kUnreadable:
      return "unreadable";
  }
  return "unknown";
}

}  // namespace tessera::core
