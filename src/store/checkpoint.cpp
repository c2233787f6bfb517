#include "tessera/store/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "store/checkpoint_manifest.h"
#include "store/checkpoint_tensors.h"
#include "store/file_lock.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

namespace fs = std::filesystem;

constexpr char kLatestFile[] = "latest";
constexpr char kLockFile[] = ".lock";
constexpr std::string_view kTemporaryFolder = ".tmp-";
constexpr std::string_view kTemporaryLatest = "latest.tmp-";  // of write_file_atomic
constexpr size_t kMaxLatestBytes = 256;
constexpr uint32_t kMaxRewrites = 1'000'000;

Status sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = fd >= 0 && ::fsync(fd) == 0;
  const int code = errno;
  if (fd >= 0) ::close(fd);
  return synced ? ok_status() : internal_error("{}: can't fsync: {}", folder, std::strerror(code));
}

// What a crash left of earlier writes.
void remove_leftovers(const std::string& root) {
  std::error_code code;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator entry(root, code), end; !code && entry != end;
       entry.increment(code)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(kTemporaryFolder) || name.starts_with(kTemporaryLatest)) {
      leftovers.push_back(entry->path());
    }
  }
  // What can't be removed now is tried again by the next write, and nobody reads it.
  for (const fs::path& leftover : leftovers) fs::remove_all(leftover, code);
}

struct FoundStep {
  StepFolder step;
  fs::file_time_type written;
  std::string run_id;  // empty: unreadable
};

// Every step folder, the oldest first. Not by the count of microbatches: a run that was resumed
// from an old checkpoint counts up again, and its new checkpoints are the ones to keep.
std::vector<FoundStep> find_steps(const std::string& root) {
  std::vector<FoundStep> found;
  std::error_code code;
  for (fs::directory_iterator entry(root, code), end; !code && entry != end;
       entry.increment(code)) {
    const std::optional<StepFolder> step = parse_step_folder(entry->path().filename().string());
    if (!step) continue;
    FoundStep item{.step = *step, .written = {}, .run_id = {}};
    const std::string path = (entry->path() / kRunFile).string();
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) {
      item.written = fs::last_write_time(path, ignored);
      if (const StatusOr<std::string> text = read_file(path, kMaxRunFileBytes); text.ok()) {
        const StatusOr<CheckpointManifest> manifest = parse_manifest(*text, path);
        if (manifest.ok()) item.run_id = manifest->checkpoint.run_id;
      }
    }
    found.push_back(std::move(item));
  }
  std::sort(found.begin(), found.end(), [](const FoundStep& a, const FoundStep& b) {
    return a.written != b.written ? a.written < b.written : a.step < b.step;
  });
  return found;
}

// Keeps `keep` folders of this run, `newest` among them.
void remove_old(const std::string& root, const ports::Checkpoint& checkpoint,
                const StepFolder& newest) {
  std::vector<StepFolder> older;
  for (const FoundStep& found : find_steps(root)) {
    if (found.run_id == checkpoint.run_id && found.step != newest) older.push_back(found.step);
  }
  const size_t keep = checkpoint.spec.checkpoint.keep - 1;
  for (size_t i = 0; i + keep < older.size(); ++i) {
    // Under a temporary name first: half a folder must never look like a checkpoint.
    const std::string folder = root + "/" + name_of(older[i]);
    const std::string doomed = fmt::format("{}/{}{}", root, kTemporaryFolder, name_of(older[i]));
    std::error_code code;
    fs::rename(folder, doomed, code);
    if (!code) fs::remove_all(doomed, code);
  }
}

// Everything but the values, which may be many gigabytes.
ports::Checkpoint counters_of(const ports::Checkpoint& checkpoint) {
  ports::Checkpoint counters;
  counters.run_id = checkpoint.run_id;
  counters.spec = checkpoint.spec;
  counters.data = checkpoint.data;
  counters.next_microbatch = checkpoint.next_microbatch;
  counters.done = checkpoint.done;
  counters.open = checkpoint.open;
  for (const ports::CheckpointStage& stage : checkpoint.stages) {
    counters.stages.push_back({stage.epoch, stage.merges, {}, {}, {}});
  }
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    counters.miners.push_back(
        {miner.node, miner.stage, miner.schedule_step, miner.local_steps, miner.fresh, {}});
  }
  return counters;
}

Status write_folder(const std::string& folder, const ports::Checkpoint& checkpoint) {
  std::error_code code;
  fs::create_directory(folder, code);
  if (code) return internal_error("{}: can't make this folder: {}", folder, code.message());
  TESSERA_ASSIGN_OR_RETURN(CheckpointManifest manifest, write_tensor_files(folder, checkpoint));
  manifest.checkpoint = counters_of(checkpoint);
  const std::string text = encode_manifest(manifest);
  if (text.size() > kMaxRunFileBytes) {
    return invalid_argument("{} would have {} bytes; at most {} can be read again", kRunFile,
                            text.size(), kMaxRunFileBytes);
  }
  TESSERA_RETURN_IF_ERROR(write_file_atomic(folder + "/" + kRunFile, text));
  return sync_folder(folder);
}

// The count of microbatches may have been written before: that folder stays until the new one is
// named.
StatusOr<StepFolder> free_name(const std::string& root, uint64_t done) {
  for (uint32_t rewrite = 1; rewrite <= kMaxRewrites; ++rewrite) {
    const StepFolder step{.done = done, .rewrite = rewrite};
    if (!file_exists(root + "/" + name_of(step))) return step;
  }
  return error(absl::StatusCode::kResourceExhausted, "{}: every name for step {} is taken", root,
               done);
}

Status publish(const std::string& root, const std::string& temporary, const StepFolder& step) {
  const std::string folder = root + "/" + name_of(step);
  std::error_code code;
  fs::rename(temporary, folder, code);
  if (code) return internal_error("{}: can't rename to {}: {}", temporary, folder, code.message());
  Status status = sync_folder(root);
  if (status.ok()) status = write_file_atomic(root + "/" + kLatestFile, name_of(step) + "\n");
  if (!status.ok()) fs::rename(folder, temporary, code);  // not at all; the caller removes it
  return status;
}

// Opening a pipe would wait for its writer.
bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string existing_steps(const std::string& root) {
  std::string names;
  for (const FoundStep& found : find_steps(root)) {
    names += (names.empty() ? "" : ", ") + name_of(found.step);
  }
  return names.empty() ? "it holds no step folder"
                       : fmt::format("it holds {}: give one of these folders", names);
}

StatusOr<std::string> find_folder(const std::string& path) {
  if (file_exists(path + "/" + kRunFile)) return path;
  if (file_exists(path + "/" + kLatestFile)) return latest_checkpoint(path);
  if (!file_exists(path)) {
    return not_found("{}: no such folder; give a checkpoint folder, or one with a file '{}'", path,
                     kLatestFile);
  }
  const std::string inner = path + "/checkpoint";
  if (file_exists(inner + "/" + kLatestFile)) {
    return not_found("{}: no checkpoint, but there is one in {}: give that folder", path, inner);
  }
  return not_found("{}: no checkpoint: neither {} nor {} is there, and {}", path, kRunFile,
                   kLatestFile, existing_steps(path));
}

StatusOr<ports::Checkpoint> read(const std::string& path, bool weights_only) {
  TESSERA_ASSIGN_OR_RETURN(const std::string folder, find_folder(path));
  const std::string run_file = folder + "/" + kRunFile;
  if (!is_file(run_file)) return data_loss("{}: not a regular file", run_file);
  TESSERA_ASSIGN_OR_RETURN(const std::string text, read_file(run_file, kMaxRunFileBytes));
  TESSERA_ASSIGN_OR_RETURN(CheckpointManifest manifest, parse_manifest(text, run_file));
  TESSERA_RETURN_IF_ERROR(read_tensor_files(folder, weights_only, &manifest));
  return std::move(manifest.checkpoint);
}

}  // namespace

StatusOr<std::string> CheckpointFolder::write(const ports::Checkpoint& checkpoint) {
  TESSERA_RETURN_IF_ERROR(annotate(check_counters(checkpoint), "checkpoint"));
  TESSERA_RETURN_IF_ERROR(annotate(check_values(checkpoint), "checkpoint"));
  TESSERA_RETURN_IF_ERROR(make_directories(root_));
  StatusOr<std::unique_ptr<FileLock>> lock = FileLock::acquire(root_ + "/" + kLockFile);
  if (!lock.ok()) {
    return annotate(lock.status(),
                    "another program writes checkpoints here; give every run its "
                    "own folder");
  }
  remove_leftovers(root_);
  TESSERA_ASSIGN_OR_RETURN(const StepFolder step, free_name(root_, checkpoint.done));
  const std::string temporary = fmt::format("{}/{}{}", root_, kTemporaryFolder, name_of(step));
  Status status = write_folder(temporary, checkpoint);
  if (status.ok()) status = publish(root_, temporary, step);
  if (!status.ok()) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    return status;
  }
  remove_old(root_, checkpoint, step);
  return root_ + "/" + name_of(step);
}

StatusOr<std::string> latest_checkpoint(const std::string& root) {
  const std::string path = root + "/" + kLatestFile;
  if (!file_exists(path)) {
    return not_found("{}: no checkpoint there: no file '{}', and {}", root, kLatestFile,
                     existing_steps(root));
  }
  if (!is_file(path)) return data_loss("{}: not a regular file", path);
  TESSERA_ASSIGN_OR_RETURN(std::string name, read_file(path, kMaxLatestBytes));
  if (name.ends_with('\n')) name.pop_back();
  if (!parse_step_folder(name)) {
    return data_loss("{}: does not name a step folder; {}", path, existing_steps(root));
  }
  const std::string folder = root + "/" + name;
  if (!file_exists(folder + "/" + kRunFile)) {
    return not_found("{}: names {}, which is not there; {}", path, name, existing_steps(root));
  }
  return folder;
}

StatusOr<ports::Checkpoint> read_checkpoint(const std::string& path) { return read(path, false); }

StatusOr<ports::Checkpoint> read_checkpoint_weights(const std::string& path) {
  return read(path, true);
}

}  // namespace tessera::store
