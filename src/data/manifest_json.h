// manifest.json of a dataset folder (docs/formats/dataset.md).
#pragma once

#include <string>
#include <string_view>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/data/dataset.h"

namespace tessera::data {

inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kRebuildHint[] = "rebuild the dataset with `tesseractl data build`";

struct StoredManifest {
  DatasetManifest manifest;
  Digest fingerprint;       // of the inputs and options it was built from
  Digest tokenizer_digest;  // of tokenizer.model; zero without one
};

std::string manifest_to_json(const StoredManifest& stored);
// Checks every type, range and file name. `path` is for messages.
StatusOr<StoredManifest> manifest_from_json(std::string_view json, const std::string& path);
// Of a folder; nothing but manifest.json is read.
StatusOr<StoredManifest> read_manifest(const std::string& folder);

}  // namespace tessera::data
