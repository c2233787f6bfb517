// The check behind load_dataset, for callers that have the manifest already.
#pragma once

#include "data/manifest_json.h"
#include "tessera/base/status.h"

namespace tessera::data {

// The files of the dataset against its manifest: sizes and headers, with `verify_hashes` every
// byte.
Status check_dataset(const StoredManifest& stored, bool verify_hashes);

}  // namespace tessera::data
