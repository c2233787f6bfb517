#include "data/build_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include "data/sequential_file.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/files.h"

namespace tessera::data {
namespace {

namespace fs = std::filesystem;

StatusOr<std::vector<std::string>> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code code;
  fs::directory_iterator entry(folder, code);
  for (; !code && entry != fs::directory_iterator(); entry.increment(code)) {
    names.push_back(entry->path().filename().string());
  }
  if (code) return internal_error("{}: can't list this folder: {}", folder, code.message());
  return names;
}

// True for the folder itself too.
bool is_inside(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first ==
         folder.end();
}

// A sibling of `out` under a name that nobody but this file uses, so that it may be removed.
std::string sibling(const std::string& out, const char* purpose) {
  const fs::path path(out);
  return (path.parent_path() / fmt::format(".{}.tessera-{}", path.filename().string(), purpose))
      .string();
}

Status remove_tree(const std::string& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) return internal_error("{}: can't remove it: {}", path, code.message());
  return ok_status();
}

}  // namespace

StatusOr<std::string> resolve_output(const std::string& out,
                                     const std::vector<std::string>& inputs) {
  if (out.empty()) return invalid_argument("no output folder is given");
  std::error_code code;
  fs::path path = fs::weakly_canonical(fs::absolute(out, code), code);
  if (code) return invalid_argument("{}: can't resolve this path: {}", out, code.message());
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename()) {
    return invalid_argument("{}: a dataset can't take this place; name a new folder", out);
  }
  for (const std::string& input : inputs) {
    const fs::path resolved = fs::weakly_canonical(fs::absolute(input, code), code);
    if (code) return invalid_argument("{}: can't resolve this path: {}", input, code.message());
    if (is_inside(resolved, path)) {
      return invalid_argument(
          "{}: this output folder holds the input {}, which would be lost; name "
          "another folder",
          out, input);
    }
    if (is_inside(path, resolved)) {
      return invalid_argument(
          "{}: lies in the input folder {} and would become an input itself; name a "
          "folder outside it",
          out, input);
    }
  }
  return path.string();
}

Status check_replaceable(const std::string& out, bool force) {
  std::error_code code;
  if (force || !fs::exists(out, code)) return ok_status();
  if (!fs::is_directory(out, code)) {
    return failed_precondition(
        "{}: exists and is not a folder; name another one, or use --force to "
        "replace it",
        out);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> names, names_in(out));
  if (names.empty()) return ok_status();
  const StatusOr<StoredManifest> stored = read_manifest(out);
  if (!stored.ok()) {
    return failed_precondition(
        "{}: exists and is no dataset that could be replaced ({}); name another "
        "folder, or use --force to replace it with all it holds",
        out, message_of(stored.status()));
  }
  std::set<std::string> ours = {kManifestFile, kTokenizerFile};
  for (const auto* split : {&stored->manifest.train, &stored->manifest.validation}) {
    for (const core::TokenShard& shard : *split) ours.insert(shard.file);
  }
  for (const std::string& name : names) {
    if (!ours.contains(name)) {
      return failed_precondition(
          "{}: holds {}, which does not belong to the dataset there and would be "
          "lost; move it away, or use --force to replace the folder",
          out, name);
    }
  }
  return ok_status();
}

StatusOr<std::unique_ptr<BuildFolder>> BuildFolder::create(const std::string& out) {
  const std::string path = sibling(out, "building");
  TESSERA_RETURN_IF_ERROR(make_directories(path));
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return file_error(path, "open");
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const bool held = errno == EWOULDBLOCK;
    const Status status = file_error(path, "lock");
    ::close(fd);
    if (!held) return status;
    return unavailable("{}: another process is building this dataset; wait until it is done", path);
  }
  std::unique_ptr<BuildFolder> folder(new BuildFolder(out, path));
  folder->lock_fd_ = fd;
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> left, names_in(path));
  for (const std::string& name : left) TESSERA_RETURN_IF_ERROR(remove_tree(path + "/" + name));
  return folder;
}

BuildFolder::~BuildFolder() {
  if (!published_) (void)remove_tree(path_);
  ::close(lock_fd_);
}

Status BuildFolder::publish(const StoredManifest& stored) {
  TESSERA_RETURN_IF_ERROR(write_file_atomic(path_ + "/" + kManifestFile, manifest_to_json(stored)));
  TESSERA_RETURN_IF_ERROR(sync_folder(path_));
  const std::string old = sibling(out_, "replaced");
  TESSERA_RETURN_IF_ERROR(remove_tree(old));
  const bool replaces = ::rename(out_.c_str(), old.c_str()) == 0;
  if (!replaces && errno != ENOENT) return file_error(out_, "move away");
  if (::rename(path_.c_str(), out_.c_str()) != 0) {
    const Status status = file_error(out_, "move the new dataset to");
    if (replaces) ::rename(old.c_str(), out_.c_str());
    return status;
  }
  published_ = true;
  TESSERA_RETURN_IF_ERROR(sync_folder(fs::path(out_).parent_path().string()));
  return remove_tree(old);
}

}  // namespace tessera::data
