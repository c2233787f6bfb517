// The blob store of this process' disk behind the interfaces of net and node.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/net/server.h"
#include "tessera/ports/links.h"
#include "tessera/store/blobs.h"

namespace tessera::apps {

// Thread-safe, as the store is.
class LocalBlobs final : public net::BlobBackend, public ports::BlobLink {
 public:
  explicit LocalBlobs(store::BlobStore& store) : store_(store) {}

  // Anyone may read; only who passes may write. Before it is set nobody writes.
  void set_writer_check(std::function<bool(const NodeId&)> may_write) { may_write_ = std::move(may_write); }

  Status admit(const ports::Caller& caller, bool write) override {
    if (!write || (may_write_ && may_write_(caller.node))) return ok_status();
    return error(absl::StatusCode::kPermissionDenied, "only registered miners store blobs here; register first");
  }
  Status put(const Digest& name, std::string content) override { return store_.put(name, content); }
  StatusOr<std::string> get(const Digest& digest) override { return store_.get(digest); }
  bool has(const Digest& digest) override { return store_.has(digest); }

  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override {
    std::vector<Digest> digests;
    for (const std::string& blob : blobs) {
      TESSERA_ASSIGN_OR_RETURN(const Digest digest, store_.put(blob));
      digests.push_back(digest);
    }
    return digests;
  }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    std::vector<std::string> blobs;
    for (const Digest& digest : digests) {
      TESSERA_ASSIGN_OR_RETURN(std::string blob, store_.get(digest));
      blobs.push_back(std::move(blob));
    }
    return blobs;
  }

 private:
  store::BlobStore& store_;
  std::function<bool(const NodeId&)> may_write_;
};

}  // namespace tessera::apps
