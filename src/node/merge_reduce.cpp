#include "tessera/node/merge_reduce.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "block_reducer.h"
#include "merge_uploads.h"
#include "merge_workers.h"
#include "tessera/base/crypto.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

using Clock = std::chrono::steady_clock;

// Of what is fetched in one call, and stored in one. Small, so that something is always on its way in both directions.
constexpr uint64_t kGroupBytes = uint64_t{512} << 10;
// Threads that store what is reduced: a slow way up must not stop the fetching.
constexpr size_t kStorers = 2;
constexpr uint64_t kMostWaitingBytes = uint64_t{64} << 20;
// Blocks that are not there yet are waited for in the store for so long at a time. One that doesn't wait is asked again after a
// pause, longer while nothing comes.
constexpr uint32_t kStoreWaitMs = 200;
constexpr std::chrono::milliseconds kFirstPause(4);
constexpr std::chrono::milliseconds kLongestPause(32);

Status check(const ReduceInputs& inputs, const std::vector<core::ShardTask>& tasks) {
  if (inputs.uploads.empty()) return invalid_argument("a reduction of no uploads");
  if (inputs.merge.trim_share > 0 && inputs.uploads.size() > core::kMaxTrimmedUploads) {
    return invalid_argument("a trimmed mean of {} uploads; the limit is {}", inputs.uploads.size(), core::kMaxTrimmedUploads);
  }
  const uint64_t blocks = inputs.blocks();
  for (const core::ShardTask& task : tasks) {
    if (task.block_count > 0 && task.first_block < blocks && task.block_count <= blocks - task.first_block) continue;
    return error(absl::StatusCode::kOutOfRange, "blocks {} to {} of a stage with {}", task.first_block,
                 task.first_block + task.block_count, blocks);
  }
  return ok_status();
}

uint64_t bytes_in(const std::vector<std::string>& blobs) {
  uint64_t bytes = 0;
  for (const std::string& blob : blobs) bytes += blob.size();
  return bytes;
}

// A shard that grows.
struct OpenShard {
  core::ShardTask task;
  std::vector<Digest> blocks;  // as reduced
  std::vector<Digest> sealed;  // under the token, as stored
  std::vector<std::vector<core::UploadMeasure>> measures;
  Digest object = {};          // of the list of the sealed ones
  uint64_t unsent = 0;         // blocks
  uint64_t left = 0;           // blocks that are not stored
};

struct Place {
  size_t shard = 0;
  uint64_t number = 0;  // of the block within the stage
};

// One reduce_shards(). Shared by its workers.
class ShardReduction {
 public:
  ShardReduction(ports::BlobLink& blobs, const ReduceInputs& inputs, const std::vector<core::ShardTask>& tasks,
                 const ShardDone& done);
  void run();

 private:
  struct Finished {
    Place place;
    Digest block;
    std::vector<core::UploadMeasure> measures;
  };
  struct Group {
    std::vector<Finished> blocks;
    std::vector<Digest> names;  // of the sealed bytes
    std::vector<std::string> sealed;
  };
  Status read_manifests();
  void work();
  std::vector<Place> claim();
  StatusOr<std::vector<std::vector<std::string>>> fetch(const std::vector<Place>& group);
  StatusOr<std::vector<std::string>> await(const std::vector<Digest>& names);
  Status check_sizes(const std::vector<Place>& group, const std::vector<std::vector<std::string>>& blocks) const;
  Status reduce(BlockReducer& reducer, const std::vector<Place>& group);
  void store_later(Group group);
  void store_all();
  void note(Group* group);
  void store(Group group);
  void finish(OpenShard& shard);
  void fail(const Status& status);
  uint64_t group_blocks() const;

  ports::BlobLink& blobs_;
  const ReduceInputs& inputs_;
  const ShardDone& done_;
  std::vector<core::ObjectManifest> manifests_;
  std::vector<Place> order_;
  std::mutex mutex_;
  size_t next_ = 0;                // of order_; under mutex_, like what follows
  std::vector<OpenShard> shards_;
  Status failure_;
  Clock::time_point last_arrival_ = Clock::now();
  std::deque<Group> waiting_;      // to be stored; without other threads it stays empty
  uint64_t waiting_bytes_ = 0;     // at most kMostWaitingBytes and a group
  bool no_more_groups_ = false;
  std::condition_variable changed_;
  bool has_storers_ = false;       // set before the threads begin
};

ShardReduction::ShardReduction(ports::BlobLink& blobs, const ReduceInputs& inputs,
                               const std::vector<core::ShardTask>& tasks, const ShardDone& done)
    : blobs_(blobs), inputs_(inputs), done_(done) {
  for (const core::ShardTask& task : tasks) {
    OpenShard& shard = shards_.emplace_back();
    shard.task = task;
    shard.unsent = shard.left = task.block_count;
  }
}

void ShardReduction::run() {
  std::vector<core::ShardTask> tasks;
  for (const OpenShard& shard : shards_) tasks.push_back(shard.task);
  Status status = check(inputs_, tasks);
  if (status.ok()) status = read_manifests();
  if (!status.ok()) return fail(status);
  const uint64_t blocks = inputs_.blocks();
  std::vector<std::optional<size_t>> owner(blocks);
  for (size_t i = 0; i < shards_.size(); ++i) {
    OpenShard& shard = shards_[i];
    shard.blocks.resize(shard.task.block_count);
    shard.sealed.resize(shard.task.block_count);
    shard.measures.resize(shard.task.block_count);
    for (uint64_t b = 0; b < shard.task.block_count; ++b) owner[shard.task.first_block + b] = i;
  }
  for (const uint64_t number : transfer_order(blocks, inputs_.rounds)) {
    if (owner[number]) order_.push_back({*owner[number], number});
  }
  const uint64_t each = sizeof(float) * inputs_.merge.block_values * (inputs_.uploads.size() + 2) + 2 * kGroupBytes;
  const size_t threads = inputs_.overlap ? std::clamp<size_t>(kReduceBytes / each, 1, kMergeTransfers) : 1;
  has_storers_ = inputs_.overlap;
  std::vector<std::jthread> storers;
  for (size_t i = 0; has_storers_ && i < kStorers; ++i) storers.emplace_back([this] { store_all(); });
  run_together(threads, [this] { work(); });
  std::lock_guard lock(mutex_);
  no_more_groups_ = true;
  changed_.notify_all();
}

Status ShardReduction::read_manifests() {
  std::vector<Digest> names;
  for (const core::UploadRef& upload : inputs_.uploads) names.push_back(upload.object);
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> contents, blobs_.get(names));
  for (size_t i = 0; i < names.size(); ++i) {
    TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, checked_upload(inputs_, names[i], contents.at(i)));
    manifests_.push_back(std::move(manifest));
  }
  return ok_status();
}

uint64_t ShardReduction::group_blocks() const {
  return std::max<uint64_t>(1, kGroupBytes / (manifests_.front().chunk_bytes * uint64_t{manifests_.size()}));
}

void ShardReduction::work() {
  BlockReducer reducer(inputs_);
  while (true) {
    const std::vector<Place> group = claim();
    if (group.empty()) return;
    if (const Status status = reduce(reducer, group); !status.ok()) return fail(status);
  }
}

std::vector<Place> ShardReduction::claim() {
  std::lock_guard lock(mutex_);
  // The first ones are small: their blocks are the first to be there.
  const size_t most = std::min<size_t>(group_blocks(), std::max<size_t>(2, next_ / 2));
  std::vector<Place> group;
  while (failure_.ok() && next_ < order_.size() && group.size() < most) group.push_back(order_[next_++]);
  return group;
}

// All of them, when the last has come.
StatusOr<std::vector<std::string>> ShardReduction::await(const std::vector<Digest>& names) {
  if (!inputs_.keep_waiting) return blobs_.get(names);
  std::vector<std::string> contents(names.size());
  std::vector<size_t> missing(names.size());
  for (size_t i = 0; i < names.size(); ++i) missing[i] = i;
  for (auto pause = kFirstPause; !missing.empty();) {
    std::vector<Digest> asked;
    for (const size_t i : missing) asked.push_back(names[i]);
    const auto began = Clock::now();
    TESSERA_ASSIGN_OR_RETURN(auto found, blobs_.get_present(asked, kStoreWaitMs));
    std::vector<size_t> still;
    for (size_t i = 0; i < asked.size(); ++i) {
      if (found.at(i)) {
        contents[missing[i]] = *std::move(found[i]);
      } else {
        still.push_back(missing[i]);
      }
    }
    const bool came = still.size() < missing.size();
    missing = std::move(still);
    if (missing.empty()) break;
    int64_t idle_ms = 0;
    {
      std::lock_guard lock(mutex_);
      if (!failure_.ok()) return failure_;
      const auto now = Clock::now();
      if (came) last_arrival_ = now;
      idle_ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - last_arrival_).count();
    }
    if (!inputs_.keep_waiting(idle_ms)) return unavailable("{} blocks of uploads have not come yet", missing.size());
    pause = came ? kFirstPause : std::min(2 * pause, kLongestPause);
    std::this_thread::sleep_until(began + pause);
  }
  return contents;
}

StatusOr<std::vector<std::vector<std::string>>> ShardReduction::fetch(const std::vector<Place>& group) {
  std::vector<Digest> names;
  for (const Place& place : group) {
    for (const core::ObjectManifest& manifest : manifests_) names.push_back(manifest.chunks[place.number]);
  }
  TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> contents, await(names));
  std::vector<std::vector<std::string>> blocks(group.size());
  for (size_t i = 0; i < contents.size(); ++i) blocks[i / manifests_.size()].push_back(std::move(contents[i]));
  return blocks;
}

Status ShardReduction::check_sizes(const std::vector<Place>& group,
                                   const std::vector<std::vector<std::string>>& blocks) const {
  for (size_t i = 0; i < group.size(); ++i) {
    const core::MergeSpec& merge = inputs_.merge;
    const uint64_t values = std::min<uint64_t>(merge.block_values, inputs_.values() - group[i].number * merge.block_values);
    const uint64_t want = kernels::merge_block_bytes(merge.upload_format, values);
    for (const std::string& content : blocks[i]) {
      if (content.size() != want) {
        return data_loss("block {} of an upload has {} bytes, not {}", group[i].number, content.size(), want);
      }
    }
  }
  return ok_status();
}

Status ShardReduction::reduce(BlockReducer& reducer, const std::vector<Place>& group) {
  TESSERA_ASSIGN_OR_RETURN(auto blocks, fetch(group));
  TESSERA_RETURN_IF_ERROR(check_sizes(group, blocks));
  std::vector<uint64_t> numbers;
  for (const Place& place : group) numbers.push_back(place.number);
  std::vector<ReducedBlock> reduced = reducer.reduce(numbers, std::exchange(blocks, {}));
  Group done;
  for (size_t i = 0; i < group.size(); ++i) {
    const core::ShardTask& task = shards_[group[i].shard].task;
    std::string& bytes = reduced[i].bytes;
    done.blocks.push_back({group[i], digest_of(bytes), std::move(reduced[i].measures)});
    apply_keystream(task.token, group[i].number - task.first_block, &bytes);
    done.names.push_back(digest_of(bytes));
    done.sealed.push_back(std::move(bytes));
  }
  has_storers_ ? store_later(std::move(done)) : store(std::move(done));
  return ok_status();
}

void ShardReduction::store_later(Group group) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_bytes_ < kMostWaitingBytes || !failure_.ok(); });
  waiting_bytes_ += bytes_in(group.sealed);
  waiting_.push_back(std::move(group));
  changed_.notify_all();
}

void ShardReduction::store_all() {
  while (true) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !waiting_.empty() || no_more_groups_; });
    if (waiting_.empty()) return;
    Group group = std::move(waiting_.front());
    waiting_.pop_front();
    waiting_bytes_ -= bytes_in(group.sealed);
    changed_.notify_all();
    lock.unlock();
    store(std::move(group));
  }
}

// What is known of its blocks when they are about to be stored. The last ones of a shard take the list of all of them along: it
// names what others store at the same time, and nobody is told of it before they have.
void ShardReduction::note(Group* group) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0, blocks = group->blocks.size(); i < blocks; ++i) {
    Finished& block = group->blocks[i];
    OpenShard& shard = shards_[block.place.shard];
    const uint64_t at = block.place.number - shard.task.first_block;
    shard.blocks[at] = block.block;
    shard.sealed[at] = group->names[i];
    shard.measures[at] = std::move(block.measures);
    if (--shard.unsent > 0) continue;
    const core::MergeSpec& merge = inputs_.merge;
    const uint64_t first = shard.task.first_block * merge.block_values;
    const uint64_t values = std::min(inputs_.values() - first, shard.task.block_count * merge.block_values);
    core::ObjectManifest manifest;
    manifest.chunk_bytes = static_cast<uint32_t>(kernels::merge_block_bytes(merge.result_format, merge.block_values));
    manifest.total_bytes = kernels::merge_run_bytes(merge.result_format, values, merge.block_values);
    manifest.chunks = std::move(shard.sealed);
    shard.object = manifest.digest();
    group->names.push_back(shard.object);
    group->sealed.push_back(manifest.encode());
  }
}

void ShardReduction::store(Group group) {
  note(&group);
  if (const Status status = blobs_.put_new(group.names, group.sealed); !status.ok()) return fail(status);
  std::vector<OpenShard*> complete;
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok()) return;  // these shards have failed already
    for (const Finished& block : group.blocks) {
      OpenShard& shard = shards_[block.place.shard];
      if (--shard.left == 0) complete.push_back(&shard);
    }
  }
  for (OpenShard* shard : complete) finish(*shard);  // nobody else touches it any more
}

void ShardReduction::finish(OpenShard& shard) {
  Reduction reduction{shard_digest(shard.blocks), shard.object, {}};
  reduction.measures.resize(inputs_.uploads.size());
  for (const auto& block : shard.measures) {
    for (size_t k = 0; k < block.size(); ++k) reduction.measures[k].add(block[k]);
  }
  done_(shard.task, std::move(reduction));
}

// The first failure is that of every shard that is not complete.
void ShardReduction::fail(const Status& status) {
  std::vector<core::ShardTask> failed;
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok()) return;
    failure_ = status;
    changed_.notify_all();
    for (const OpenShard& shard : shards_) {
      if (shard.left > 0) failed.push_back(shard.task);
    }
  }
  for (const core::ShardTask& task : failed) done_(task, status);
}

}  // namespace

Digest shard_digest(const std::vector<Digest>& blocks) {
  Hasher hasher;
  for (const Digest& block : blocks) hasher.update(block.view());
  return hasher.finish();
}

void reduce_shards(ports::BlobLink& blobs, const ReduceInputs& inputs, const std::vector<core::ShardTask>& tasks,
                   const ShardDone& done) {
  ShardReduction(blobs, inputs, tasks, done).run();
}

StatusOr<Reduction> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs, const core::ShardTask& task) {
  StatusOr<Reduction> result = internal_error("the reduction said nothing");
  reduce_shards(blobs, inputs, {task}, [&](const core::ShardTask&, StatusOr<Reduction> reduction) { result = std::move(reduction); });
  return result;
}

}  // namespace tessera::node
