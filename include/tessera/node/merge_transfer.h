// A miner's transfers of a merge: its pseudo-gradient on the way up, the merged one on the way down.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// A link that remembers what it was given for the running merge, so that a miner fetches neither its own upload nor its own
// results; and what was asked for by itself: the lists of the uploads' blocks, which every shard needs again. Keeps at most
// `limit_bytes`; what is beyond is fetched. Thread-safe.
class KeptBlobs final : public ports::BlobLink {
 public:
  explicit KeptBlobs(ports::BlobLink& link) : link_(link) {}
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override;
  bool has(const Digest& digest) const;
  // Forgets everything and keeps what is put from now on.
  void begin(uint64_t limit_bytes);
  void clear() { begin(0); }

 private:
  void keep(const Digest& name, const std::string& blob);  // under mutex_

  ports::BlobLink& link_;
  mutable std::mutex mutex_;
  std::map<Digest, std::string> kept_;
  uint64_t bytes_ = 0;
  uint64_t limit_bytes_ = 0;
};

struct DeltaUpload {
  Digest object;
  std::vector<float> residual;  // what the format left out; empty with fp32
};

// base - snapshot + residual (empty: none) on the upload format, block by block. A value that is not finite leaves no
// residual: the gate will refuse the upload.
StatusOr<DeltaUpload> upload_delta(ports::BlobLink& blobs, const core::MergeSpec& merge, const std::vector<float>& base,
                                   const std::vector<float>& snapshot, const std::vector<float>& residual);

// What an upload says: the pseudo-gradient of a whole stage. DATA_LOSS if it is not one.
StatusOr<std::vector<float>> fetch_upload(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                          const Digest& object);
// How far the upload format alone moves a pseudo-gradient: |format(delta) - delta| / |delta|; 0 for fp32.
double upload_rounding(const core::MergeSpec& merge, const std::vector<float>& delta);

// Makes a copy of a shard whose own copies are all bad, from the uploads.
using RemakeShard = std::function<StatusOr<core::ResultCopy>(const core::ShardResult& shard)>;

// The merged pseudo-gradient from its shards, which must tile the stage. A copy that is missing or does not have the shard's
// digest is passed over for the next; `remake` is asked last.
StatusOr<std::vector<float>> fetch_mean(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                        const std::vector<core::ShardResult>& results, const RemakeShard& remake = {});

}  // namespace tessera::node
