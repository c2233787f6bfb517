// The folder a dataset is built in: a sibling `.<out>.tessera-building` that takes the place of
// `<out>` when it is complete. A crash at any instant leaves the old dataset, the new one, or none,
// never a part of one. One thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/manifest_json.h"
#include "tessera/base/status.h"

namespace tessera::data {

// `out` as an absolute path without links. Refuses what must never be replaced (the root, a folder
// that holds one of `inputs`) and a place inside an input folder.
StatusOr<std::string> resolve_output(const std::string& out,
                                     const std::vector<std::string>& inputs);

// OK if `out` does not exist, is an empty folder, or a dataset with nothing else in it; or with
// `force`.
Status check_replaceable(const std::string& out, bool force);

class BuildFolder {
 public:
  // Locks the sibling (UNAVAILABLE while another process builds there) and clears what a killed
  // build left.
  static StatusOr<std::unique_ptr<BuildFolder>> create(const std::string& out);
  // Removes the sibling unless it was published.
  ~BuildFolder();
  BuildFolder(const BuildFolder&) = delete;
  BuildFolder& operator=(const BuildFolder&) = delete;
  const std::string& path() const { return path_; }
  // Writes the manifest, makes everything durable and moves the folder to `out`.
  Status publish(const StoredManifest& stored);

 private:
  BuildFolder(std::string out, std::string path) : out_(std::move(out)), path_(std::move(path)) {}
  const std::string out_;
  const std::string path_;
  int lock_fd_ = -1;
  bool published_ = false;
};

}  // namespace tessera::data
