// run.json of a checkpoint: what it says, and the names of the files and folders beside it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/ports/checkpoint_store.h"

namespace tessera::store {

inline constexpr char kRunFile[] = "run.json";
inline constexpr size_t kMaxRunFileBytes = size_t{64} << 20;

struct StoredFile {
  std::string name;
  uint64_t bytes = 0;
  Digest digest;
};

struct CheckpointManifest {
  ports::Checkpoint checkpoint;     // its vectors of values are empty
  std::vector<StoredFile> weights;  // of each stage
  std::vector<StoredFile> outer;    // of each stage
  std::vector<StoredFile> states;   // of each miner
};

// Everything but the vectors of values. INVALID_ARGUMENT says what contradicts what.
Status check_counters(const ports::Checkpoint& checkpoint);

std::string encode_manifest(const CheckpointManifest& manifest);
// Checked as check_counters() does, and that every file has the name it must have.
StatusOr<CheckpointManifest> parse_manifest(std::string_view text, const std::string& path);

std::string weights_file(StageIndex stage);
std::string outer_file(StageIndex stage);
// Of each miner. 8 digits of its key tell it apart, or all of them where 8 do not.
std::vector<std::string> state_files(const std::vector<ports::CheckpointMiner>& miners);

// "step-000000012345"; `rewrite` > 1 gives "step-000000012345-2": the same count was written
// before.
struct StepFolder {
  uint64_t done = 0;
  uint32_t rewrite = 1;
  auto operator<=>(const StepFolder&) const = default;
};
std::string name_of(const StepFolder& folder);
// Nothing if it is no such name.
std::optional<StepFolder> parse_step_folder(std::string_view name);

}  // namespace tessera::store
