// A miner's transfers of a merge: its pseudo-gradient, and moments if merges average them, on the way up, the merged ones on
// the way down. What lies where is in core/merge_planes.h.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/object.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_layout.h"
#include "tessera/core/stage_state.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// A link that remembers what it was given for the running merge, so that a miner fetches neither its own upload nor its own
// results. Keeps at most `limit_bytes`; what is beyond is fetched. Thread-safe.
class KeptBlobs final : public ports::BlobLink {
 public:
  explicit KeptBlobs(ports::BlobLink& link) : link_(link) {}
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
  Status put_new(const std::vector<Digest>& names, const std::vector<std::string>& blobs) override;
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override;
  StatusOr<std::vector<std::optional<std::string>>> get_present(const std::vector<Digest>& digests, uint32_t wait_ms) override;
  bool has(const Digest& digest) const;
  // What is not here yet, to be kept. RESOURCE_EXHAUSTED at the limit.
  Status fetch(const std::vector<Digest>& names);
  // Keeps a blob, whatever the limit.
  void remember(const Digest& name, std::string blob);
  // Stores what is remembered.
  Status store(const std::vector<Digest>& names);
  // Forgets everything and keeps what is put from now on.
  void begin(uint64_t limit_bytes);
  void clear() { begin(0); }

 private:
  void keep(const std::vector<Digest>& names, const std::vector<std::string>& blobs);
  // What is kept of them, and the places of those that are not.
  std::vector<std::optional<std::string>> kept(const std::vector<Digest>& digests, std::vector<size_t>* missing) const;

  ports::BlobLink& link_;
  mutable std::mutex mutex_;
  std::map<Digest, std::string> kept_;
  uint64_t bytes_ = 0;
  uint64_t limit_bytes_ = 0;
};

// The order in which the blocks of a stage go up, and are reduced: one part of `rounds` after the other (core/butterfly.h), and
// within one any run of blocks grows evenly, so that every owner of a shard has something to do from the first moment on.
std::vector<uint64_t> transfer_order(uint64_t blocks, uint32_t rounds);

struct DeltaUpload {
  Digest object;
  std::vector<float> residual;  // what was left out of this and earlier ones; empty with fp32
  core::ObjectManifest manifest;
};

// base - snapshot with error feedback (merge_feedback_cpu; residual empty: none), and the moments' planes, on the upload format,
// block by block, in `threads` threads; `blobs` remembers the blocks, and the list of them is stored. A value that is not finite
// adds nothing to the residual: the gate will refuse the upload. `moments` must be there if the merge has planes for them.
StatusOr<DeltaUpload> commit_delta(KeptBlobs& blobs, const core::MergeSpec& merge, const std::vector<float>& base,
                                   const std::vector<float>& snapshot, const std::vector<float>& residual, size_t threads,
                                   const core::Moments* moments = nullptr);
// Stores the blocks of what was committed, in transfer_order(), until `is_over`.
Status store_delta(KeptBlobs& blobs, const core::ObjectManifest& manifest, uint32_t rounds, size_t threads,
                   const std::function<bool()>& is_over);

// Fetches results that can't be read yet, in threads of its own, for fetch_mean(): their copies are sealed until the merge's gate
// has decided. What is wrong with a copy is left to fetch_mean(), which has others. Thread-safe.
class ResultPrefetch {
 public:
  // `blobs` must outlive it.
  ResultPrefetch(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values);
  // Waits for the calls under way.
  ~ResultPrefetch() { close(); }
  void add(const std::vector<core::SealedResult>& results);
  // Begins no other call.
  void close();

 private:
  void run();
  std::optional<core::SealedResult> next();
  Status fetch(const core::SealedResult& result);

  KeptBlobs& blobs_;
  const core::MergeSpec merge_;
  const uint64_t values_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<core::SealedResult> waiting_;
  bool closed_ = false;
  std::vector<std::jthread> threads_;  // last: they use what is above
};

// What an upload says, all its planes. DATA_LOSS if it is not one of this stage.
StatusOr<std::vector<float>> fetch_upload(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                          const Digest& object);
// How far the upload format alone moves a plane: |format(delta) - delta| / |delta|; 0 for fp32.
double upload_rounding(const core::MergeSpec& merge, const std::vector<float>& delta);

// Makes a copy of a shard whose own copies are all bad, from the uploads.
using RemakeShard = std::function<StatusOr<core::ResultCopy>(const core::ShardResult& shard)>;

// The merged planes from their shards, which must tile them, fetched in `threads` threads. A copy that is missing
// or does not have the shard's digest is passed over for the next; `remake` is asked last, by one thread at a time. If that gives
// another digest too, or the uploads are not there, the shard's first block is added to `unreadable` and the others are tried
// all the same (at most core::kMaxUnreadableResults). `room`: memory for the answer, of its size, from before there was a wait for
// this; it is overwritten.
StatusOr<std::vector<float>> fetch_mean(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                        const std::vector<core::ShardResult>& results, const RemakeShard& remake = {},
                                        size_t threads = 1, std::vector<uint64_t>* unreadable = nullptr,
                                        std::vector<float> room = {});
// The moments that a merge gives every replica, to the bit the same, from its merged planes. `layout`: of the stage.
//
// The second moments are the squares of the merged roots, but nowhere less than the square of the first moment. Where rounding
// made a small root zero, Adam would divide by nearly nothing; so what was merged makes no step longer than the learning rate
// (but for the correction of its bias). A true mean of squares is the larger of the two nearly always. Muon's matrices have no
// second moments: zeros.
core::Moments merged_moments(const core::RunSpec& spec, const std::vector<core::TensorLayout>& layout,
                             const std::vector<float>& merged);
// Whether one of its copies can be read and has the shard's digest.
Status check_result(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values, const core::ShardResult& result);

}  // namespace tessera::node
