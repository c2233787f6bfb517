#include "store/checkpoint_manifest.h"

#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "tessera/base/archive.h"
#include "tessera/base/crypto.h"

namespace tessera::store {
namespace {

using nlohmann::ordered_json;

constexpr char kFormat[] = "tessera-checkpoint";
constexpr uint64_t kVersion = 1;
constexpr size_t kRunIdBytes = 16;
constexpr uint64_t kMaxRewrites = 1'000'000;
constexpr std::string_view kStepPrefix = "step-";
constexpr size_t kStepDigits = 12;
constexpr char kMend[] = "restore it from a copy, or use another checkpoint";

// The file's last field is the digest of every byte before it.
constexpr std::string_view kDigestName = "\"blake2b\": \"";
constexpr std::string_view kDigestEnd = "\"\n}\n";
constexpr size_t kDigestBytes = 64 + kDigestName.size() + kDigestEnd.size();

ordered_json json_of(const StoredFile& file) {
  return {{"file", file.name}, {"bytes", file.bytes}, {"blake2b", file.digest.hex()}};
}

// For people. A text in it that is not UTF-8 leaves null; the bytes beside it are what is read.
template <class T>
ordered_json readable(const T& value) {
  ordered_json json = ordered_json::parse(to_json(value), nullptr, /*allow_exceptions=*/false);
  return json.is_discarded() ? ordered_json() : json;
}

ordered_json json_of(const CheckpointManifest& manifest) {
  const ports::Checkpoint& checkpoint = manifest.checkpoint;
  ordered_json out;
  out["format"] = kFormat;
  out["version"] = kVersion;
  out["run_id"] = to_hex(checkpoint.run_id);
  out["done"] = checkpoint.done;
  out["next_microbatch"] = checkpoint.next_microbatch;
  out["open"] = ordered_json::array();
  for (const core::OpenAtCheckpoint& open : checkpoint.open) {
    out["open"].push_back({{"microbatch", open.microbatch},
                           {"attempt", open.attempt},
                           {"counted_stages", open.counted_stages}});
  }
  out["stages"] = ordered_json::array();
  for (size_t stage = 0; stage < checkpoint.stages.size(); ++stage) {
    out["stages"].push_back({{"epoch", checkpoint.stages[stage].epoch},
                             {"merges", checkpoint.stages[stage].merges},
                             {"weights", json_of(manifest.weights[stage])},
                             {"outer", json_of(manifest.outer[stage])}});
  }
  out["miners"] = ordered_json::array();
  for (size_t i = 0; i < checkpoint.miners.size(); ++i) {
    const ports::CheckpointMiner& miner = checkpoint.miners[i];
    out["miners"].push_back({{"node", miner.node.hex()},
                             {"stage", miner.stage},
                             {"schedule_step", miner.schedule_step},
                             {"local_steps", miner.local_steps},
                             {"fresh", miner.fresh},
                             {"state", json_of(manifest.states[i])}});
  }
  out["run_spec"] = readable(checkpoint.spec);
  out["run_spec_bytes"] = to_hex(encode(checkpoint.spec));
  out["data_plan"] = readable(checkpoint.data);
  out["data_plan_bytes"] = to_hex(encode(checkpoint.data));
  return out;
}

// Reads fields of objects; the first problem is kept, and names its place.
class FieldReader {
 public:
  std::string text(const ordered_json& object, const char* name, const std::string& place) {
    const ordered_json* value = find(object, name);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
    refuse("{}needs a text \"{}\"", place, name);
    return {};
  }
  template <class Number = uint64_t>
  Number number(const ordered_json& object, const char* name, const std::string& place) {
    const ordered_json* value = find(object, name);
    if (value != nullptr && value->is_number_unsigned() &&
        std::in_range<Number>(value->get<uint64_t>())) {
      return static_cast<Number>(value->get<uint64_t>());
    }
    refuse("{}needs a whole number \"{}\" of {} bits", place, name, 8 * sizeof(Number));
    return 0;
  }
  std::string bytes(const ordered_json& object, const char* name, const std::string& place) {
    std::optional<std::string> bytes = from_hex(text(object, name, place));
    if (!bytes) refuse("{}needs hexadecimal digits in \"{}\"", place, name);
    return bytes.value_or("");
  }
  template <class Id>
  Id id(const ordered_json& object, const char* name, const std::string& place) {
    Id id;
    if (!Id::from(bytes(object, name, place), &id)) {
      refuse("{}needs 64 hexadecimal digits in \"{}\"", place, name);
    }
    return id;
  }
  const ordered_json& list(const ordered_json& object, const char* name) {
    static const ordered_json kEmpty = ordered_json::array();
    const ordered_json* value = find(object, name);
    if (value != nullptr && value->is_array()) return *value;
    refuse("needs a list \"{}\"", name);
    return kEmpty;
  }
  StoredFile file(const ordered_json& object, const char* name, const std::string& place) {
    const ordered_json* value = find(object, name);
    const std::string inner = fmt::format("{}{}: ", place, name);
    if (value == nullptr) refuse("{}needs \"{}\"", place, name);
    if (value == nullptr) return {};
    return {text(*value, "file", inner), number(*value, "bytes", inner),
            id<Digest>(*value, "blake2b", inner)};
  }
  template <class... Args>
  void refuse(fmt::format_string<Args...> format, Args&&... args) {
    if (problem_.empty()) problem_ = fmt::format(format, std::forward<Args>(args)...);
  }
  const std::string& problem() const { return problem_; }

 private:
  static const ordered_json* find(const ordered_json& object, const char* name) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(name);
    return found == object.end() ? nullptr : &*found;
  }
  std::string problem_;
};

void read_lists(const ordered_json& json, FieldReader* reader, CheckpointManifest* manifest) {
  ports::Checkpoint& checkpoint = manifest->checkpoint;
  for (const ordered_json& item : reader->list(json, "open")) {
    const std::string place = fmt::format("open[{}]: ", checkpoint.open.size());
    checkpoint.open.push_back({reader->number(item, "microbatch", place),
                               reader->number<uint32_t>(item, "attempt", place),
                               reader->number(item, "counted_stages", place)});
  }
  for (const ordered_json& item : reader->list(json, "stages")) {
    const std::string place = fmt::format("stages[{}]: ", checkpoint.stages.size());
    ports::CheckpointStage stage;
    stage.epoch = reader->number(item, "epoch", place);
    stage.merges = reader->number(item, "merges", place);
    checkpoint.stages.push_back(std::move(stage));
    manifest->weights.push_back(reader->file(item, "weights", place));
    manifest->outer.push_back(reader->file(item, "outer", place));
  }
  for (const ordered_json& item : reader->list(json, "miners")) {
    const std::string place = fmt::format("miners[{}]: ", checkpoint.miners.size());
    ports::CheckpointMiner miner;
    miner.node = reader->id<NodeId>(item, "node", place);
    miner.stage = reader->number<StageIndex>(item, "stage", place);
    miner.schedule_step = reader->number(item, "schedule_step", place);
    miner.local_steps = reader->number(item, "local_steps", place);
    miner.fresh = reader->number<uint32_t>(item, "fresh", place);
    checkpoint.miners.push_back(std::move(miner));
    manifest->states.push_back(reader->file(item, "state", place));
  }
}

// The names follow from the rest; one that differs could lead anywhere.
void check_file_names(const CheckpointManifest& manifest, FieldReader* reader) {
  const auto check = [&](const StoredFile& file, const std::string& expected) {
    if (file.name != expected) reader->refuse("names another file where {} belongs", expected);
  };
  for (StageIndex stage = 0; stage < manifest.weights.size(); ++stage) {
    check(manifest.weights[stage], weights_file(stage));
    check(manifest.outer[stage], outer_file(stage));
  }
  const std::vector<std::string> states = state_files(manifest.checkpoint.miners);
  for (size_t i = 0; i < states.size(); ++i) check(manifest.states[i], states[i]);
}

Status check_open(const ports::Checkpoint& checkpoint) {
  const uint32_t stages = checkpoint.spec.pipeline.stages;
  std::set<uint64_t> seen;
  for (const core::OpenAtCheckpoint& open : checkpoint.open) {
    if (open.microbatch >= checkpoint.next_microbatch) {
      return invalid_argument("open microbatch {} is not below next_microbatch {}", open.microbatch,
                              checkpoint.next_microbatch);
    }
    if (stages < 64 && (open.counted_stages >> stages) != 0) {
      return invalid_argument("open microbatch {} is counted by stages that the run's {} lack",
                              open.microbatch, stages);
    }
    if (!seen.insert(open.microbatch).second) {
      return invalid_argument("open microbatch {} is there twice", open.microbatch);
    }
  }
  return ok_status();
}

Status check_miners(const ports::Checkpoint& checkpoint) {
  std::set<NodeId> seen;
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    if (miner.stage >= checkpoint.spec.pipeline.stages) {
      return invalid_argument("miner {} is of stage {}; the run has {} stages", miner.node.brief(),
                              miner.stage, checkpoint.spec.pipeline.stages);
    }
    if (!seen.insert(miner.node).second) {
      return invalid_argument("miner {} is there twice", miner.node.hex());
    }
  }
  return ok_status();
}

}  // namespace

Status check_counters(const ports::Checkpoint& checkpoint) {
  if (checkpoint.run_id.size() != kRunIdBytes) {
    return invalid_argument("a run id of {} bytes; it must have {}", checkpoint.run_id.size(),
                            kRunIdBytes);
  }
  core::RunSpec spec = checkpoint.spec;
  TESSERA_RETURN_IF_ERROR(annotate(core::validate(&spec), "run specification"));
  if (encode(spec) != encode(checkpoint.spec)) {
    return invalid_argument("run specification: its derived values are not filled in");
  }
  if (checkpoint.stages.size() != spec.pipeline.stages) {
    return invalid_argument("{} stages, but pipeline.stages is {}", checkpoint.stages.size(),
                            spec.pipeline.stages);
  }
  if (checkpoint.done > checkpoint.next_microbatch) {
    return invalid_argument("{} microbatches are done, but only {} were ever issued",
                            checkpoint.done, checkpoint.next_microbatch);
  }
  TESSERA_RETURN_IF_ERROR(check_open(checkpoint));
  return check_miners(checkpoint);
}

std::string encode_manifest(const CheckpointManifest& manifest) {
  std::string text = json_of(manifest).dump(1, ' ', false, ordered_json::error_handler_t::replace);
  TESSERA_CHECK(text.ends_with("\n}"));
  text.replace(text.size() - 2, 2, ",\n ");
  const std::string digest = digest_of(text).hex();
  text += kDigestName;
  text += digest;
  text += kDigestEnd;
  return text;
}

StatusOr<CheckpointManifest> parse_manifest(std::string_view text, const std::string& path) {
  const size_t body = text.size() < kDigestBytes ? 0 : text.size() - kDigestBytes;
  const std::string_view end = text.substr(body);
  if (body == 0 || !end.starts_with(kDigestName) || !end.ends_with(kDigestEnd) ||
      end.substr(kDigestName.size(), 64) != digest_of(text.substr(0, body)).hex()) {
    return data_loss(
        "{}: its content does not have the digest in its last line: truncated, "
        "damaged or edited; {}",
        path, kMend);
  }
  const ordered_json json = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return data_loss("{}: not JSON; {}", path, kMend);

  FieldReader reader;
  const uint64_t version = reader.number(json, "version", "");
  if (reader.text(json, "format", "") != kFormat) reader.refuse("is not a {}", kFormat);
  if (reader.problem().empty() && version != kVersion) {
    return failed_precondition(
        "{}: version {} of the format, but this program reads version {}; use the version of "
        "Tessera that wrote it",
        path, version, kVersion);
  }
  CheckpointManifest manifest;
  ports::Checkpoint& checkpoint = manifest.checkpoint;
  checkpoint.run_id = reader.bytes(json, "run_id", "");
  checkpoint.done = reader.number(json, "done", "");
  checkpoint.next_microbatch = reader.number(json, "next_microbatch", "");
  read_lists(json, &reader, &manifest);
  if (!decode(reader.bytes(json, "run_spec_bytes", ""), &checkpoint.spec)) {
    reader.refuse("holds no run specification in \"run_spec_bytes\"");
  }
  if (!decode(reader.bytes(json, "data_plan_bytes", ""), &checkpoint.data)) {
    reader.refuse("holds no data plan in \"data_plan_bytes\"");
  }
  if (reader.problem().empty()) check_file_names(manifest, &reader);
  if (!reader.problem().empty()) return data_loss("{}: {}; {}", path, reader.problem(), kMend);
  if (const Status counters = check_counters(checkpoint); !counters.ok()) {
    return data_loss("{}: {}; {}", path, message_of(counters), kMend);
  }
  return manifest;
}

std::string weights_file(StageIndex stage) { return fmt::format("stage-{}.safetensors", stage); }

std::string outer_file(StageIndex stage) {
  return fmt::format("stage-{}.outer.safetensors", stage);
}

std::vector<std::string> state_files(const std::vector<ports::CheckpointMiner>& miners) {
  // A key with chosen first digits is easily made, so that equal ones must not meet in one file.
  std::map<std::pair<StageIndex, std::string>, size_t> uses;
  for (const ports::CheckpointMiner& miner : miners) uses[{miner.stage, miner.node.brief()}]++;
  std::vector<std::string> names;
  names.reserve(miners.size());
  for (const ports::CheckpointMiner& miner : miners) {
    const std::string brief = miner.node.brief();
    names.push_back(fmt::format("stage-{}.miner-{}.safetensors", miner.stage,
                                uses[{miner.stage, brief}] > 1 ? miner.node.hex() : brief));
  }
  return names;
}

std::string name_of(const StepFolder& folder) {
  const std::string name = fmt::format("{}{:0{}}", kStepPrefix, folder.done, kStepDigits);
  return folder.rewrite > 1 ? fmt::format("{}-{}", name, folder.rewrite) : name;
}

std::optional<StepFolder> parse_step_folder(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  StepFolder folder;
  const char* const end = name.data() + name.size();
  const auto done = std::from_chars(name.data() + kStepPrefix.size(), end, folder.done);
  if (done.ec != std::errc()) return std::nullopt;
  if (done.ptr != end) {
    if (*done.ptr != '-') return std::nullopt;
    const auto rewrite = std::from_chars(done.ptr + 1, end, folder.rewrite);
    if (rewrite.ec != std::errc() || folder.rewrite > kMaxRewrites) return std::nullopt;
  }
  // One spelling of each: what is not the name that would be written is another's file.
  if (name_of(folder) != name) return std::nullopt;
  return folder;
}

}  // namespace tessera::store
