#include <algorithm>
#include <mutex>
#include <span>
#include <utility>

#include "merge_workers.h"
#include "tessera/base/crypto.h"
#include "tessera/base/large_vector.h"
#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"
#include "tessera/core/merge_messages.h"
#include "tessera/core/merge_planes.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr uint64_t kFetchBytes = uint64_t{512} << 10;  // of a copy, in one call
constexpr size_t kPrefetchers = 2;  // so that one fetches blocks while the other waits for a list of them
constexpr uint64_t kPrefetchBytes = uint64_t{128} << 10;  // little: what others wait for goes before

bool is_bad_copy(const Status& status) {
  // Or what its name leads to is no list of chunks, or too short a one.
  return absl::IsDataLoss(status) || absl::IsNotFound(status) || absl::IsInvalidArgument(status) || absl::IsOutOfRange(status);
}

// The list of a copy's blocks. DATA_LOSS if it is not one of a shard of so many values.
StatusOr<core::ObjectManifest> read_copy_list(const core::MergeSpec& merge, uint64_t values, const Digest& object,
                                              std::string_view bytes) {
  auto manifest = core::ObjectManifest::decode(bytes);
  if (!manifest.ok()) return annotate(manifest.status(), "object " + object.brief());
  const uint64_t chunk = kernels::merge_block_bytes(merge.result_format, merge.block_values);
  const uint64_t total = kernels::merge_run_bytes(merge.result_format, values, merge.block_values);
  if (manifest->total_bytes != total || manifest->chunk_bytes != chunk) {
    return data_loss("a copy of a shard has {} bytes in chunks of {}, not {} in chunks of {}", manifest->total_bytes,
                     manifest->chunk_bytes, total, chunk);
  }
  return manifest;
}

// A shard that is fetched from one of its copies.
struct OpenResult {
  const core::ShardResult* result = nullptr;
  core::ResultCopy copy;
  size_t tried = 0;               // the first of them
  bool is_kept = false;           // here, or on its way already
  core::ObjectManifest manifest;
  std::vector<Digest> blocks;     // as opened
  uint64_t left = 0;              // blocks
  Status status = data_loss("a shard without copies");
};

// Some blocks of a copy, in one call.
struct Part {
  OpenResult* shard = nullptr;
  uint64_t first = 0;  // of the shard's blocks
  uint64_t count = 0;
};

// Some shards that follow each other. Shared by its workers, which take parts of all shards' first copies. What is wrong with one
// of those costs the shard another copy, afterwards.
class MeanFetch {
 public:
  // `mean` begins with the first shard's first value.
  MeanFetch(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values, std::span<const core::ShardResult> results,
            std::vector<float>* mean)
      : blobs_(blobs),
        merge_(merge),
        values_(core::merged_values(merge, stage_values)),
        origin_(results.front().first_block * merge.block_values),
        mean_(*mean),
        shards_(results.size()) {
    for (size_t i = 0; i < results.size(); ++i) shards_[i].result = &results[i];
  }

  // The first of the failures; of those that are not the link's all shards are told, if `unreadable` is there.
  Status run(const RemakeShard& remake, size_t threads, std::vector<uint64_t>* unreadable) {
    std::vector<OpenResult*> all;
    for (OpenResult& shard : shards_) {
      if (shard.result->copies.empty()) continue;
      const auto& copies = shard.result->copies;
      const auto kept = std::find_if(copies.begin(), copies.end(), [&](const auto& copy) { return blobs_.has(copy.object); });
      shard.is_kept = kept != copies.end();
      shard.tried = shard.is_kept ? static_cast<size_t>(kept - copies.begin()) : 0;
      shard.copy = copies[shard.tried];
      all.push_back(&shard);
    }
    TESSERA_RETURN_IF_ERROR(fetch(all, threads));
    Status failure;
    for (OpenResult& shard : shards_) {
      TESSERA_RETURN_IF_ERROR(try_others(&shard, remake, threads));
      if (shard.status.ok()) continue;
      if (failure.ok()) failure = shard.status;
      if (unreadable == nullptr || unreadable->size() == core::kMaxUnreadableResults) return failure;
      unreadable->push_back(shard.result->first_block);
    }
    return failure;
  }

 private:
  uint64_t first_value(const core::ShardResult& result) const { return result.first_block * merge_.block_values; }
  uint64_t value_count(const core::ShardResult& result) const {
    return std::min(values_ - first_value(result), result.block_count * merge_.block_values);
  }

  // The copies that were not tried yet, then one that is made anew. An error is one of the link; what is wrong with the copies is
  // in the shard's status.
  Status try_others(OpenResult* shard, const RemakeShard& remake, size_t threads) {
    const auto& copies = shard->result->copies;
    for (size_t i = 0; i < copies.size() && is_bad_copy(shard->status); ++i) {
      if (i != shard->tried) TESSERA_RETURN_IF_ERROR(fetch_from(shard, copies[i], threads));
    }
    if (!is_bad_copy(shard->status) || !remake) return ok_status();
    const StatusOr<core::ResultCopy> made = remake(*shard->result);
    if (made.ok()) return fetch_from(shard, *made, threads);
    shard->status = made.status();
    return is_bad_copy(made.status()) ? ok_status() : made.status();
  }

  Status fetch_from(OpenResult* shard, const core::ResultCopy& copy, size_t threads) {
    shard->copy = copy;
    return fetch({shard}, threads);
  }

  // Each from its present copy; what is wrong with a copy is in its shard's status. An error is one of the link.
  Status fetch(const std::vector<OpenResult*>& shards, size_t threads) {
    TESSERA_RETURN_IF_ERROR(fetch_manifests(shards));
    parts_.clear();
    next_ = 0;
    for (const bool kept : {false, true}) {  // what is here already fills the time at the end
      for (OpenResult* shard : shards) {
        if (shard->is_kept == kept && shard->status.ok()) begin(shard);
      }
    }
    run_together(threads, [this] {
      for (const Part* part = claim(); part != nullptr; part = claim()) take(*part);
    });
    return failure_;
  }

  // All in one call; one by one if that stumbles over a bad one.
  Status fetch_manifests(const std::vector<OpenResult*>& shards) {
    std::vector<Digest> names;
    for (const OpenResult* shard : shards) names.push_back(shard->copy.object);
    const auto together = blobs_.get(names);
    if (!together.ok() && !is_bad_copy(together.status())) return together.status();
    for (size_t i = 0; i < shards.size(); ++i) {
      StatusOr<std::string> bytes = std::string();
      if (together.ok()) {
        bytes = together->at(i);
      } else if (auto alone = blobs_.get({names[i]}); alone.ok()) {
        bytes = std::move(alone->at(0));
      } else {
        bytes = alone.status();
      }
      shards[i]->status = bytes.ok() ? read_manifest(*bytes, shards[i]) : bytes.status();
      if (!shards[i]->status.ok() && !is_bad_copy(shards[i]->status)) return shards[i]->status;
    }
    return ok_status();
  }

  Status read_manifest(const std::string& bytes, OpenResult* shard) {
    TESSERA_ASSIGN_OR_RETURN(shard->manifest, read_copy_list(merge_, value_count(*shard->result), shard->copy.object, bytes));
    return ok_status();
  }

  void begin(OpenResult* shard) {
    const uint64_t count = shard->manifest.chunks.size();
    shard->blocks.assign(count, Digest{});
    shard->left = count;
    const uint64_t step = std::max<uint64_t>(1, kFetchBytes / shard->manifest.chunk_bytes);
    for (uint64_t at = 0; at < count; at += step) parts_.push_back({shard, at, std::min(step, count - at)});
  }

  const Part* claim() {
    std::lock_guard lock(mutex_);
    while (next_ < parts_.size() && !parts_[next_].shard->status.ok()) ++next_;
    return failure_.ok() && next_ < parts_.size() ? &parts_[next_++] : nullptr;
  }

  void take(const Part& part) {
    OpenResult& shard = *part.shard;
    std::vector<Digest> blocks;
    const Status status = open(part, &blocks);
    std::lock_guard lock(mutex_);
    if (!status.ok()) {
      (is_bad_copy(status) ? shard.status : failure_) = status;
      return;
    }
    std::copy(blocks.begin(), blocks.end(), shard.blocks.begin() + static_cast<int64_t>(part.first));
    shard.left -= part.count;
    if (shard.left == 0 && shard_digest(shard.blocks) != shard.result->result) {
      shard.status = data_loss("copy {} of a shard is not what its owner committed", shard.copy.object.brief());
    }
  }

  // Puts the part's values into the mean, whatever they are: that they are right is known when the shard is whole.
  Status open(const Part& part, std::vector<Digest>* blocks) {
    const OpenResult& shard = *part.shard;
    const auto first = shard.manifest.chunks.begin() + static_cast<int64_t>(part.first);
    TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> contents, blobs_.get({first, first + static_cast<int64_t>(part.count)}));
    for (uint64_t i = 0; i < part.count; ++i) {
      std::string& content = contents.at(i);
      const uint64_t at = (part.first + i) * merge_.block_values;
      const uint64_t values = std::min<uint64_t>(merge_.block_values, value_count(*shard.result) - at);
      const uint64_t want = kernels::merge_block_bytes(merge_.result_format, values);
      if (content.size() != want) {
        return data_loss("block {} of a copy of a shard has {} bytes, not {}", part.first + i, content.size(), want);
      }
      apply_keystream(shard.copy.token, part.first + i, &content);
      blocks->push_back(digest_of(content));
      kernels::merge_decode_cpu({.run = {merge_.result_format, values, merge_.block_values},
                                 .payload = reinterpret_cast<const uint8_t*>(content.data()),
                                 .assign = true,
                                 .sum = mean_.data() + (first_value(*shard.result) - origin_) + at});
    }
    return ok_status();
  }

  KeptBlobs& blobs_;
  const core::MergeSpec& merge_;
  const uint64_t values_;  // of all planes
  const uint64_t origin_;  // of mean_, in the stage
  std::vector<float>& mean_;  // each part is one worker's
  std::vector<OpenResult> shards_;
  std::vector<Part> parts_;
  std::mutex mutex_;
  size_t next_ = 0;  // of parts_; under mutex_, like the shards and what follows
  Status failure_;
};

}  // namespace

ResultPrefetch::ResultPrefetch(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values)
    : blobs_(blobs), merge_(merge), values_(core::merged_values(merge, stage_values)) {
  for (size_t i = 0; i < kPrefetchers; ++i) {
    threads_.emplace_back([this] {
      name_thread("prefetch");
      run();
    });
  }
}

void ResultPrefetch::add(const std::vector<core::SealedResult>& results) {
  std::lock_guard lock(mutex_);
  waiting_.insert(waiting_.end(), results.begin(), results.end());
  changed_.notify_all();
}

void ResultPrefetch::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::optional<core::SealedResult> ResultPrefetch::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
  if (closed_) return std::nullopt;
  const core::SealedResult result = waiting_.front();
  waiting_.pop_front();
  return result;
}

void ResultPrefetch::run() {
  while (const auto result = next()) {
    if (const Status status = fetch(*result); !status.ok()) {
      spdlog::debug("a sealed copy of blocks {} to {} can't be fetched ahead: {}", result->first_block,
                    result->first_block + result->block_count - 1, message_of(status));
    }
  }
}

Status ResultPrefetch::fetch(const core::SealedResult& result) {
  const uint64_t first_value = result.first_block * merge_.block_values;
  if (first_value >= values_) return data_loss("a shard begins behind the end of its stage");
  const uint64_t values = std::min(values_ - first_value, result.block_count * merge_.block_values);
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> list, blobs_.get({result.object}));
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, read_copy_list(merge_, values, result.object, list.at(0)));
  blobs_.remember(result.object, list.at(0));  // so that fetch_mean() goes on with this copy
  const uint64_t step = std::max<uint64_t>(1, kPrefetchBytes / manifest.chunk_bytes);
  for (uint64_t at = 0; at < manifest.chunks.size(); at += step) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return ok_status();
    }
    const auto first = manifest.chunks.begin() + static_cast<int64_t>(at);
    const auto count = static_cast<int64_t>(std::min<uint64_t>(step, manifest.chunks.size() - at));
    TESSERA_RETURN_IF_ERROR(blobs_.fetch({first, first + count}));
  }
  return ok_status();
}

StatusOr<std::vector<float>> fetch_mean(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                        const std::vector<core::ShardResult>& results, const RemakeShard& remake,
                                        size_t threads, std::vector<uint64_t>* unreadable, std::vector<float> room) {
  const uint64_t blocks = core::merged_blocks(merge, stage_values);
  uint64_t covered = 0;
  for (const core::ShardResult& result : results) {
    if (result.first_block != covered || result.block_count == 0 || result.block_count > blocks - covered) {
      return data_loss("the merge's shards do not tile the stage");
    }
    covered += result.block_count;
  }
  if (covered != blocks) return data_loss("the merge's shards cover {} of {} blocks", covered, blocks);
  std::vector<float> mean = std::move(room);
  resize_large(&mean, core::merged_values(merge, stage_values));
  if (results.empty()) return mean;
  TESSERA_RETURN_IF_ERROR(MeanFetch(blobs, merge, stage_values, results, &mean).run(remake, threads, unreadable));
  return mean;
}

Status check_result(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values, const core::ShardResult& result) {
  const uint64_t first = result.first_block * merge.block_values;
  const uint64_t all = core::merged_values(merge, stage_values);
  if (first >= all) return data_loss("a shard begins behind the end of its stage");
  KeptBlobs kept(blobs);
  std::vector<float> values(std::min(all - first, result.block_count * merge.block_values));
  return MeanFetch(kept, merge, stage_values, {&result, 1}, &values).run({}, 1, nullptr);
}

}  // namespace tessera::node
