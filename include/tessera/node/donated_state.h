// What a replica gives away of the state that its stage's replicas have in common: the chunks of the object, and the list of
// them, straight from where the base and the outer momentum lie. Nothing is copied before it is asked for.
#pragma once

#include <map>
#include <shared_mutex>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/object.h"

namespace tessera::node {

// Thread-safe.
class DonatedState {
 public:
  // `manifest` is that of base, then momentum. Both stay as they are until withdraw() has returned.
  void offer(const core::ObjectManifest& manifest, const std::vector<float>& base, const std::vector<float>& momentum);
  void withdraw();
  // A chunk, or the manifest's bytes. NOT_FOUND for anything else.
  StatusOr<std::string> get(const Digest& name) const;

 private:
  mutable std::shared_mutex mutex_;  // shared while a chunk is copied
  std::string manifest_;
  Digest name_;
  std::map<Digest, uint64_t> chunks_;  // their places
  uint64_t chunk_bytes_ = 0;
  const std::vector<float>* base_ = nullptr;
  const std::vector<float>* momentum_ = nullptr;
};

}  // namespace tessera::node
