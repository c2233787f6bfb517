// A large object from several sources at once: the blob store, and replicas that hold it too. A source that is dead, does not
// have a chunk or gives false bytes is left out, and costs the chunks that it was asked for; what was fetched is kept, so that
// a try after a failure goes on where it ended.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/object.h"
#include "tessera/ports/links.h"

namespace tessera::node {

struct ObjectSource {
  ports::BlobLink* link = nullptr;
  size_t chunks_at_once = 1;  // asked for in one call, and lost with it
};

class PartialObject;

// run() belongs to one thread.
class ObjectFetch {
 public:
  // `folder`: what has come is kept there too, for a process after this one, until the object is whole. Empty: it is not.
  explicit ObjectFetch(std::string folder = "");
  ~ObjectFetch();
  // The whole object; links check every byte against its name. Refused before any chunk is fetched if it is not
  // `expected_bytes` long. Ends when it is whole, or no source is left: then the status is that of the first source. Each
  // source has a thread of its own if `parallel`; else they are asked one after the other.
  StatusOr<std::string> run(const Digest& object, uint64_t expected_bytes, const std::vector<ObjectSource>& sources, bool parallel);
  // Of the last run() that succeeded.
  const core::ObjectManifest& manifest() const { return manifest_; }
  // By source of the last run(): chunks that came from it.
  const std::vector<uint64_t>& chunks_from() const { return chunks_from_; }

 private:
  Status begin(const Digest& object, uint64_t expected_bytes, const std::vector<ObjectSource>& sources);
  void work(size_t source, const ObjectSource& from);
  std::vector<uint64_t> claim(size_t count);
  Status fetch(const ObjectSource& from, const std::vector<uint64_t>& chunks);
  uint64_t size_of(uint64_t chunk) const;

  Digest object_;
  core::ObjectManifest manifest_;
  const std::unique_ptr<PartialObject> partial_;
  std::string content_;  // of the object under way; the chunks that are missing are not written yet
  std::mutex mutex_;
  std::vector<uint64_t> open_;  // chunks that nobody fetches, the next one last; under mutex_, like what follows
  uint64_t under_way_ = 0;
  std::vector<uint64_t> chunks_from_;
  std::vector<Status> failures_;  // by source
  std::condition_variable changed_;
};

}  // namespace tessera::node
