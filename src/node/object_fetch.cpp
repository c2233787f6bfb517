#include "tessera/node/object_fetch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "partial_object.h"
#include "tessera/base/log.h"
#include "tessera/node/objects.h"

namespace tessera::node {

ObjectFetch::ObjectFetch(std::string folder) : partial_(std::make_unique<PartialObject>(std::move(folder))) {}
ObjectFetch::~ObjectFetch() = default;

uint64_t ObjectFetch::size_of(uint64_t chunk) const {
  return std::min<uint64_t>(manifest_.chunk_bytes, manifest_.total_bytes - chunk * manifest_.chunk_bytes);
}

// The list of chunks, from whoever has it. Replicas first: they answer at once or not at all.
Status ObjectFetch::begin(const Digest& object, uint64_t expected_bytes, const std::vector<ObjectSource>& sources) {
  if (object == object_ && !content_.empty()) return ok_status();
  object_ = Digest{};
  content_ = std::string();
  open_.clear();
  Status failure = failed_precondition("there is no source");
  for (size_t i = sources.size(); i-- > 0;) {
    const StatusOr<core::ObjectManifest> manifest = get_manifest(*sources[i].link, object);
    if (!manifest.ok()) {
      failure = manifest.status();
      continue;
    }
    if (manifest->total_bytes != expected_bytes) {
      return data_loss("object {} has {} bytes, expected {}", object.brief(), manifest->total_bytes, expected_bytes);
    }
    manifest_ = *manifest;
    object_ = object;
    content_.resize(manifest_.total_bytes);
    const std::vector<uint64_t> here = partial_->open(manifest_, &content_);
    for (uint64_t chunk = manifest_.chunks.size(); chunk-- > 0;) {
      if (!std::binary_search(here.begin(), here.end(), chunk)) open_.push_back(chunk);
    }
    return ok_status();
  }
  return failure;
}

StatusOr<std::string> ObjectFetch::run(const Digest& object, uint64_t expected_bytes, const std::vector<ObjectSource>& sources,
                                       bool parallel) {
  TESSERA_RETURN_IF_ERROR(begin(object, expected_bytes, sources));
  chunks_from_.assign(sources.size(), 0);
  failures_.assign(sources.size(), ok_status());
  if (parallel) {
    std::vector<std::jthread> workers;
    for (size_t i = 0; i < sources.size(); ++i) workers.emplace_back([this, i, &sources] { work(i, sources[i]); });
  } else {
    for (size_t i = 0; i < sources.size(); ++i) work(i, sources[i]);
  }
  if (!open_.empty()) {
    const Status first = *std::find_if(failures_.begin(), failures_.end(), [](const Status& status) { return !status.ok(); });
    return annotate(first, fmt::format("{} of {} chunks are missing", open_.size(), manifest_.chunks.size()));
  }
  object_ = Digest{};
  partial_->finish();
  return std::exchange(content_, std::string());
}

void ObjectFetch::work(size_t source, const ObjectSource& from) {
  for (std::vector<uint64_t> chunks = claim(from.chunks_at_once); !chunks.empty(); chunks = claim(from.chunks_at_once)) {
    const Status status = fetch(from, chunks);
    std::lock_guard lock(mutex_);
    under_way_ -= chunks.size();
    if (status.ok()) chunks_from_[source] += chunks.size();
    if (!status.ok()) open_.insert(open_.end(), chunks.rbegin(), chunks.rend());
    failures_[source] = status;
    changed_.notify_all();
    if (status.ok()) continue;
    spdlog::warn("a source of object {} is left out: {}", object_.brief(), message_of(status));
    return;
  }
}

// None: all are there. What others fetch may come back, if they fail.
std::vector<uint64_t> ObjectFetch::claim(size_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !open_.empty() || under_way_ == 0; });
  std::vector<uint64_t> chunks;
  while (chunks.size() < count && !open_.empty()) {
    chunks.push_back(open_.back());
    open_.pop_back();
  }
  under_way_ += chunks.size();
  return chunks;
}

Status ObjectFetch::fetch(const ObjectSource& from, const std::vector<uint64_t>& chunks) {
  std::vector<Digest> names;
  for (const uint64_t chunk : chunks) names.push_back(manifest_.chunks[chunk]);
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> contents, from.link->get(names));
  for (size_t i = 0; i < chunks.size(); ++i) {
    // That a content is the named one is the link's to check; a list may still name chunks of other lengths than it says.
    if (contents.at(i).size() != size_of(chunks[i])) {
      return data_loss("chunk {} of object {} has {} bytes, not {}", chunks[i], object_.brief(), contents[i].size(), size_of(chunks[i]));
    }
  }
  // Nobody else writes there: the chunks are this worker's until it gives them back.
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::memcpy(content_.data() + chunks[i] * manifest_.chunk_bytes, contents[i].data(), contents[i].size());
    partial_->write(chunks[i] * manifest_.chunk_bytes, contents[i]);
  }
  return ok_status();
}

}  // namespace tessera::node
