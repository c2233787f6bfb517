#include "tessera/node/donated_state.h"

#include <algorithm>
#include <mutex>

#include "tessera/node/objects.h"

namespace tessera::node {

void DonatedState::offer(const core::ObjectManifest& manifest, const std::vector<float>& base, const std::vector<float>& momentum) {
  TESSERA_CHECK(manifest.total_bytes == (base.size() + momentum.size()) * sizeof(float));
  std::unique_lock lock(mutex_);
  manifest_ = manifest.encode();
  name_ = manifest.digest();
  chunks_.clear();
  for (uint64_t i = 0; i < manifest.chunks.size(); ++i) chunks_.emplace(manifest.chunks[i], i);
  chunk_bytes_ = manifest.chunk_bytes;
  base_ = &base;
  momentum_ = &momentum;
}

void DonatedState::withdraw() {
  std::unique_lock lock(mutex_);
  base_ = momentum_ = nullptr;
}

StatusOr<std::string> DonatedState::get(const Digest& name) const {
  std::shared_lock lock(mutex_);
  const auto chunk = chunks_.find(name);
  if (base_ == nullptr || (name != name_ && chunk == chunks_.end())) return not_found("this replica does not hold {}", name.brief());
  if (name == name_) return manifest_;
  std::string bytes;
  uint64_t skipped = chunk->second * chunk_bytes_;
  for (const std::string_view part : {bytes_of(*base_), bytes_of(*momentum_)}) {
    const uint64_t from = std::min<uint64_t>(skipped, part.size());
    bytes += part.substr(from, chunk_bytes_ - bytes.size());
    skipped -= from;
  }
  return bytes;
}

}  // namespace tessera::node
