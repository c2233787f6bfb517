#include "data/input_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "data/sequential_file.h"

namespace tessera::data {
namespace {

namespace fs = std::filesystem;

StatusOr<InputFile> describe(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return file_error(path, "read this input");
  if (!S_ISREG(info.st_mode)) {
    return invalid_argument(
        "{}: neither a regular file nor a folder; give text, .jsonl, .gz or a folder", path);
  }
  InputFile file;
  file.path = path;
  file.bytes = static_cast<uint64_t>(info.st_size);
  file.modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  std::string_view name = path;
  file.gzip = name.ends_with(".gz");
  if (file.gzip) name.remove_suffix(3);
  file.json_lines = name.ends_with(".jsonl");
  return file;
}

StatusOr<std::vector<std::string>> files_below(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code code;
  fs::recursive_directory_iterator entry(folder, code);
  for (; !code && entry != fs::recursive_directory_iterator(); entry.increment(code)) {
    if (entry->path().filename().native().starts_with('.')) {
      entry.disable_recursion_pending();
    } else if (entry->symlink_status(code).type() == fs::file_type::regular) {
      paths.push_back(entry->path().string());
    }
  }
  if (code) return internal_error("{}: can't list this folder: {}", folder, code.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

StatusOr<std::vector<InputFile>> list_input_files(const std::vector<std::string>& inputs) {
  std::vector<InputFile> files;
  std::set<std::string> seen;
  for (const std::string& input : inputs) {
    std::vector<std::string> paths = {input};
    std::error_code code;
    if (fs::is_directory(input, code)) {
      TESSERA_ASSIGN_OR_RETURN(paths, files_below(input));
      if (paths.empty()) {
        return invalid_argument(
            "{}: no file in this folder (names with a leading dot and links don't count)", input);
      }
    }
    for (const std::string& path : paths) {
      TESSERA_ASSIGN_OR_RETURN(InputFile file, describe(path));
      const std::string canonical = fs::weakly_canonical(path, code).string();
      if (code) return internal_error("{}: can't resolve this path: {}", path, code.message());
      if (!seen.insert(canonical).second) {
        return invalid_argument("{}: this file is given twice; give every input once", path);
      }
      file.path = canonical;
      files.push_back(std::move(file));
    }
  }
  if (files.empty())
    return invalid_argument("no input files; give text, .jsonl, .gz files or folders");
  return files;
}

}  // namespace tessera::data
