#include "config/scenario_values.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::config {
namespace {

constexpr size_t kMaxFaults = 1000;
constexpr double kMaxSeconds = 1e8;

const std::vector<std::pair<std::string, FaultKind>>& fault_names() {
  static const std::vector<std::pair<std::string, FaultKind>> names = {
      {"kill", FaultKind::kKill},           {"freeze", FaultKind::kFreeze},
      {"partition", FaultKind::kPartition}, {"drain", FaultKind::kDrain},
      {"join", FaultKind::kJoin},           {"orchestrator_crash", FaultKind::kOrchestratorCrash},
      {"pause", FaultKind::kPause},         {"checkpoint", FaultKind::kCheckpoint},
      {"order", FaultKind::kOrder}};
  return names;
}

template <class T>
Status read_optional(const YAML::Node& node, std::optional<T>* target) {
  T value{};
  TESSERA_RETURN_IF_ERROR(read_value(node, &value));
  *target = value;
  return ok_status();
}

Status read_key(const std::string& key, const YAML::Node& value, Fault* fault) {
  if (key == "kind") return read_value(value, Choice<FaultKind>{&fault->kind, fault_names()});
  if (key == "at_s") return read_optional(value, &fault->at_s);
  if (key == "every_s") return read_optional(value, &fault->every_s);
  if (key == "from_s") return read_value(value, &fault->from_s);
  if (key == "until_s") return read_optional(value, &fault->until_s);
  if (key == "for_s") return read_value(value, &fault->for_s);
  if (key == "stage") return read_optional(value, &fault->stage);
  if (key == "count") return read_value(value, &fault->count);
  if (key == "share") return read_optional(value, &fault->share);
  return invalid_argument(
      "unknown; a fault has kind, at_s or every_s with from_s and until_s, for_s, stage, count and "
      "share");
}

Status read_fault(const YAML::Node& node, Fault* fault) {
  if (!node.IsMap()) return invalid_argument("expected keys such as {{kind: kill, at_s: 60}}");
  std::vector<std::string> seen;
  for (const auto& entry : node) {
    TESSERA_ASSIGN_OR_RETURN(const std::string key, scalar_text(entry.first, "a key"));
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      return invalid_argument("{}: given twice", key);
    }
    seen.push_back(key);
    TESSERA_RETURN_IF_ERROR(annotate(read_key(key, entry.second, fault), key));
  }
  if (seen.empty() || std::find(seen.begin(), seen.end(), "kind") == seen.end()) {
    return invalid_argument("kind: missing; name what happens, such as kind: kill");
  }
  return validate(*fault);
}

bool is_time(double seconds) { return seconds >= 0 && seconds <= kMaxSeconds; }

}  // namespace

const char* name_of(FaultKind kind) {
  for (const auto& [name, value] : fault_names()) {
    if (value == kind) return name.c_str();
  }
  TESSERA_CHECK(false && "a kind of fault without a name");
  return "";
}

Status validate(const Fault& fault) {
  if (fault.at_s.has_value() == fault.every_s.has_value()) {
    return invalid_argument("give either at_s (once) or every_s (again and again)");
  }
  if (fault.at_s && (fault.until_s || fault.from_s != 0)) {
    return invalid_argument("from_s and until_s go with every_s, not with at_s");
  }
  if (fault.at_s && !is_time(*fault.at_s)) return invalid_argument("at_s: must be 0 to 1e8");
  if (fault.every_s && !(*fault.every_s >= 0.001 && *fault.every_s <= kMaxSeconds)) {
    return invalid_argument("every_s: must be 0.001 to 1e8");
  }
  if (!is_time(fault.from_s)) return invalid_argument("from_s: must be 0 to 1e8");
  if (fault.until_s && !is_time(*fault.until_s)) {
    return invalid_argument("until_s: must be 0 to 1e8");
  }
  if (!is_time(fault.for_s)) return invalid_argument("for_s: must be 0 to 1e8");
  const bool lasts = fault.kind == FaultKind::kFreeze || fault.kind == FaultKind::kPartition ||
                     fault.kind == FaultKind::kOrchestratorCrash || fault.kind == FaultKind::kPause;
  if (lasts && fault.for_s == 0) {
    return invalid_argument("for_s: a {} needs a duration above 0", name_of(fault.kind));
  }
  if (fault.count < 1 || fault.count > 100000) {
    return invalid_argument("count: must be 1 to 100000");
  }
  if (fault.share && !(*fault.share > 0 && *fault.share <= 1)) {
    return invalid_argument("share: must be above 0 and at most 1");
  }
  return ok_status();
}

std::string type_of(const std::vector<Fault>*) { return "a list of faults"; }

Status read_value(const YAML::Node& node, std::vector<Fault>* target) {
  if (!node.IsSequence()) {
    return invalid_argument("expected {}, got {}", type_of(target), describe(node));
  }
  if (node.size() > kMaxFaults) return invalid_argument("more than {} faults", kMaxFaults);
  std::vector<Fault> faults;
  for (const auto& item : node) {
    faults.emplace_back();
    TESSERA_RETURN_IF_ERROR(
        annotate(read_fault(item, &faults.back()), fmt::format("fault {}", faults.size())));
  }
  *target = std::move(faults);
  return ok_status();
}

std::string write_value(const std::vector<Fault>* target) {
  std::string text;
  for (const Fault& fault : *target) {
    text += (text.empty() ? "{kind: " : ", {kind: ") + std::string(name_of(fault.kind));
    const auto add = [&](const char* key, const auto& value) {
      text += fmt::format(", {}: {}", key, write_value(&value));
    };
    if (fault.at_s) add("at_s", *fault.at_s);
    if (fault.every_s) add("every_s", *fault.every_s);
    if (fault.from_s != 0) add("from_s", fault.from_s);
    if (fault.until_s) add("until_s", *fault.until_s);
    if (fault.for_s != 0) add("for_s", fault.for_s);
    if (fault.stage) add("stage", *fault.stage);
    if (fault.count != 1) add("count", fault.count);
    if (fault.share) add("share", *fault.share);
    text += "}";
  }
  return "[" + text + "]";
}

}  // namespace tessera::config
