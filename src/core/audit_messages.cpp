#include "tessera/core/audit_messages.h"

#include <fmt/format.h>

#include <cstdio>

#include "tessera/core/memory_plan.h"

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

std::string box_description(const std::string& first_device, const BoxShape& shape) {
  if (shape.workers < 2) return first_device;
  const std::string text = fmt::format("{} and {} more, zero_stage {}", first_device, shape.workers - 1, shape.zero_stage);
  return shape.workers == 2 ? text : fmt::format("{}-box: {}", device_kind(first_device), text);
}

BoxShape box_shape(const std::string& description) {
  const size_t at = description.find(" and ");
  unsigned more = 0, zero_stage = 0;
  if (at == std::string::npos ||
      std::sscanf(description.c_str() + at, " and %3u more, zero_stage %1u", &more, &zero_stage) != 2 || more < 1 ||
      more >= kMostGpusOfBox || zero_stage > kMostZeroStage) {
    return {};
  }
  return {more + 1, zero_stage};
}

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
