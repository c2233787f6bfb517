// The blob store of this process' disk behind the interfaces of net and node.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/net/server.h"
#include "tessera/ports/links.h"
#include "tessera/store/blob_quota.h"
#include "tessera/store/blobs.h"
#include "tessera/store/ledger_reader.h"

namespace tessera::apps {

// Thread-safe, as the store is.
class LocalBlobs final : public net::BlobBackend, public ports::BlobLink {
 public:
  // Anyone may read. Others than this process may put only what `quota` lets them.
  LocalBlobs(store::BlobStore& store, store::BlobQuota& quota) : store_(store), quota_(quota) {}

  // Of the run that these blobs are of; before it is set nobody reads one.
  void set_ledger(store::LedgerReader* ledger) { ledger_ = ledger; }
  StatusOr<ports::LedgerPage> read_ledger(uint64_t after, uint64_t offset) override {
    return ledger_ == nullptr ? BlobBackend::read_ledger(after, offset) : ledger_->read(after, offset);
  }

  Status admit(const ports::Caller& caller, bool write) override {
    if (!write || quota_.is_open(caller.node)) return ok_status();
    return error(absl::StatusCode::kPermissionDenied, "only registered miners store blobs here; register first");
  }
  Status put(const ports::Caller& caller, const Digest& name, std::string content) override {
    TESSERA_RETURN_IF_ERROR(quota_.take(caller.node, content.size(), monotonic_now_ms()));
    bool is_new = false;
    const Status status = store_.put(name, content, &is_new);
    if (!is_new) quota_.give_back(caller.node, content.size());
    return status;
  }
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
  store::BlobQuota& quota_;
  store::LedgerReader* ledger_ = nullptr;
};

}  // namespace tessera::apps
