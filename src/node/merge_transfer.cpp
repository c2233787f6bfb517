#include "tessera/node/merge_transfer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <utility>

#include "merge_workers.h"
#include "tessera/base/crypto.h"
#include "tessera/base/large_vector.h"
#include "tessera/core/merge_planes.h"
#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/objects.h"
#include "transfer_window.h"

namespace tessera::node {

// ---- KeptBlobs --------------------------------------------------------------------------------------------------------

StatusOr<std::vector<Digest>> KeptBlobs::put(const std::vector<std::string>& blobs) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<Digest> names, link_.put(blobs));
  keep(names, blobs);
  return names;
}

Status KeptBlobs::put_new(const std::vector<Digest>& names, const std::vector<std::string>& blobs) {
  TESSERA_RETURN_IF_ERROR(link_.put_new(names, blobs));
  keep(names, blobs);
  return ok_status();
}

void KeptBlobs::keep(const std::vector<Digest>& names, const std::vector<std::string>& blobs) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < blobs.size() && i < names.size(); ++i) {
    if (bytes_ + blobs[i].size() > limit_bytes_) continue;
    if (kept_.emplace(names[i], blobs[i]).second) bytes_ += blobs[i].size();
  }
}

std::vector<std::optional<std::string>> KeptBlobs::kept(const std::vector<Digest>& digests, std::vector<size_t>* missing) const {
  std::vector<std::optional<std::string>> contents(digests.size());
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < digests.size(); ++i) {
    if (const auto found = kept_.find(digests[i]); found != kept_.end()) {
      contents[i] = found->second;
    } else {
      missing->push_back(i);
    }
  }
  return contents;
}

StatusOr<std::vector<std::string>> KeptBlobs::get(const std::vector<Digest>& digests) {
  std::vector<size_t> missing;
  std::vector<std::optional<std::string>> contents = kept(digests, &missing);
  if (!missing.empty()) {
    std::vector<Digest> asked;
    for (const size_t i : missing) asked.push_back(digests[i]);
    TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> fetched, link_.get(asked));
    for (size_t i = 0; i < missing.size(); ++i) contents[missing[i]] = std::move(fetched.at(i));
  }
  std::vector<std::string> all;
  all.reserve(contents.size());
  for (std::optional<std::string>& content : contents) all.push_back(*std::move(content));
  return all;
}

StatusOr<std::vector<std::optional<std::string>>> KeptBlobs::get_present(const std::vector<Digest>& digests,
                                                                                 uint32_t wait_ms) {
  std::vector<size_t> missing;
  std::vector<std::optional<std::string>> contents = kept(digests, &missing);
  if (missing.empty()) return contents;
  std::vector<Digest> asked;
  for (const size_t i : missing) asked.push_back(digests[i]);
  TESSERA_ASSIGN_OR_RETURN(auto fetched, link_.get_present(asked, wait_ms));
  for (size_t i = 0; i < missing.size(); ++i) contents[missing[i]] = std::move(fetched.at(i));
  return contents;
}

bool KeptBlobs::has(const Digest& digest) const {
  std::lock_guard lock(mutex_);
  return kept_.count(digest) > 0;
}

Status KeptBlobs::fetch(const std::vector<Digest>& names) {
  std::vector<size_t> missing;
  kept(names, &missing);
  if (missing.empty()) return ok_status();
  {
    std::lock_guard lock(mutex_);
    if (bytes_ >= limit_bytes_) return error(absl::StatusCode::kResourceExhausted, "{} bytes are kept already", bytes_);
  }
  std::vector<Digest> asked;
  for (const size_t i : missing) asked.push_back(names[i]);
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> contents, link_.get(asked));
  keep(asked, contents);
  return ok_status();
}

void KeptBlobs::remember(const Digest& name, std::string blob) {
  std::lock_guard lock(mutex_);
  const size_t size = blob.size();
  if (kept_.emplace(name, std::move(blob)).second) bytes_ += size;
}

Status KeptBlobs::store(const std::vector<Digest>& names) {
  std::vector<size_t> missing;
  std::vector<std::string> blobs;
  for (std::optional<std::string>& content : kept(names, &missing)) {
    if (!content) return internal_error("a block that was to be stored is forgotten");
    blobs.push_back(*std::move(content));
  }
  return link_.put_new(names, blobs);
}

void KeptBlobs::begin(uint64_t limit_bytes) {
  std::lock_guard lock(mutex_);
  kept_.clear();
  bytes_ = 0;
  limit_bytes_ = limit_bytes;
}

// ---- up ---------------------------------------------------------------------------------------------------------------

std::vector<uint64_t> transfer_order(uint64_t blocks, uint32_t rounds) {
  // Multiples of the golden ratio spread evenly over a circle, however many there are: the k-th block of a round is the place of
  // the k-th multiple among all of them.
  std::vector<uint64_t> order(blocks);
  std::vector<std::pair<double, uint64_t>> points;
  const uint64_t parts = std::clamp<uint64_t>(rounds, 1, std::max<uint64_t>(1, blocks));
  uint64_t first = 0;
  for (uint64_t round = 0; round < parts; ++round) {
    const uint64_t count = blocks / parts + (round < blocks % parts ? 1 : 0);
    points.resize(count);
    for (uint64_t k = 0; k < count; ++k) {
      const double turns = static_cast<double>(k) * 0.6180339887498949;
      points[k] = {turns - std::floor(turns), k};
    }
    std::sort(points.begin(), points.end());
    for (uint64_t i = 0; i < count; ++i) order[first + points[i].second] = first + i;
    first += count;
  }
  return order;
}

namespace {

// One block on the upload format; what that leaves out goes to `residual`, if it is not null.
std::string encode_block(const core::MergeSpec& merge, uint64_t number, const std::vector<float>& delta, float* residual) {
  const kernels::MergeRun run{merge.upload_format, delta.size(), merge.block_values};
  std::string bytes(kernels::merge_run_bytes(run.format, run.values, run.block_values), '\0');
  kernels::merge_encode_cpu({.run = run,
                             .input = delta.data(),
                             .first_block = number,
                             .payload = reinterpret_cast<uint8_t*>(bytes.data()),
                             .residual = residual});
  return bytes;
}

// Some values of the plane of the first moments or, as roots, of the second.
void put_moments(const core::Moments& moments, uint64_t plane, uint64_t first, uint64_t count, float* values) {
  const float* from = (plane == 1 ? moments.first : moments.second).data() + first;
  for (uint64_t i = 0; i < count; ++i) values[i] = plane == 1 ? from[i] : std::sqrt(from[i]);
}

}  // namespace

StatusOr<DeltaUpload> commit_delta(KeptBlobs& blobs, const core::MergeSpec& merge, const std::vector<float>& base,
                                   const std::vector<float>& snapshot, const std::vector<float>& residual, size_t threads,
                                   const core::Moments* moments) {
  TESSERA_CHECK(moments != nullptr || core::merge_planes(merge) == 1);
  const uint64_t block = merge.block_values, values = core::merged_values(merge, base.size());
  const uint64_t count = core::merged_blocks(merge, base.size());
  if (count > core::kMaxChunks) {
    return error(absl::StatusCode::kResourceExhausted,
                 "a merge of a stage of {} values has {} blocks, at most {} are possible; raise merge.block_values", base.size(),
                 count, core::kMaxChunks);
  }
  DeltaUpload upload;
  if (merge.upload_format != Codec::kFp32) resize_large(&upload.residual, core::plane_blocks(merge, base.size()) * block);
  upload.manifest.chunk_bytes = static_cast<uint32_t>(kernels::merge_block_bytes(merge.upload_format, block));
  upload.manifest.total_bytes = kernels::merge_run_bytes(merge.upload_format, values, block);
  upload.manifest.chunks.resize(count);
  std::atomic<uint64_t> next{0};
  run_together(threads, [&] {
    std::vector<float> delta, rest;
    for (uint64_t number = next++; number < count; number = next++) {
      delta.assign(std::min<uint64_t>(block, values - number * block), 0.0f);
      const uint64_t plane = number / core::plane_blocks(merge, base.size());
      const uint64_t first = number * block - core::plane_begin(merge, base.size(), plane);
      const uint64_t present = std::min<uint64_t>(block, base.size() - first);
      float* left = nullptr;
      if (plane == 0) {
        kernels::pseudo_gradient_cpu(base.data() + first, snapshot.data() + first, present, delta.data());
        if (!upload.residual.empty()) left = upload.residual.data() + first;
        if (left != nullptr && !residual.empty()) {
          rest.resize(present);
          kernels::merge_feedback_cpu({.run = {merge.upload_format, present, block},
                                       .residual = residual.data() + first,
                                       .values = delta.data(),
                                       .rest = rest.data()});
        }
      } else {
        put_moments(*moments, plane, first, present, delta.data());
      }
      std::string bytes = encode_block(merge, number, delta, left);
      if (left != nullptr && !rest.empty()) {
        for (uint64_t i = 0; i < present; ++i) left[i] += rest[i];
      }
      upload.manifest.chunks[number] = digest_of(bytes);
      blobs.remember(upload.manifest.chunks[number], std::move(bytes));
    }
  });
  if (!upload.residual.empty()) upload.residual.resize(base.size());  // without what fills the last block
  upload.object = upload.manifest.digest();
  TESSERA_RETURN_IF_ERROR(blobs.put_new({upload.object}, {upload.manifest.encode()}));
  return upload;
}

StatusOr<std::vector<float>> fetch_upload(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                          const Digest& object) {
  const kernels::MergeRun run{merge.upload_format, core::merged_values(merge, stage_values), merge.block_values};
  const uint64_t bytes = kernels::merge_run_bytes(run.format, run.values, run.block_values);
  TESSERA_ASSIGN_OR_RETURN(const std::string payload, get_object(blobs, object, bytes));
  auto delta = large_vector<float>(run.values);
  kernels::merge_decode_cpu(
      {.run = run, .payload = reinterpret_cast<const uint8_t*>(payload.data()), .assign = true, .sum = delta.data()});
  return delta;
}

double upload_rounding(const core::MergeSpec& merge, const std::vector<float>& delta) {
  if (merge.upload_format == Codec::kFp32 || delta.empty()) return 0;
  const kernels::MergeRun run{merge.upload_format, delta.size(), merge.block_values};
  std::string payload(kernels::merge_run_bytes(run.format, run.values, run.block_values), '\0');
  auto* const bytes = reinterpret_cast<uint8_t*>(payload.data());
  kernels::merge_encode_cpu({.run = run, .input = delta.data(), .payload = bytes});
  std::vector<float> rounded(delta.size());
  kernels::merge_decode_cpu({.run = run, .payload = bytes, .assign = true, .sum = rounded.data()});
  double error = 0, energy = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    const double difference = static_cast<double>(rounded[i]) - delta[i];
    error += difference * difference;
    energy += static_cast<double>(delta[i]) * delta[i];
  }
  return energy > 0 && std::isfinite(error) ? std::sqrt(error / energy) : 0;
}

Status store_delta(KeptBlobs& blobs, const core::ObjectManifest& manifest, uint32_t rounds, size_t threads,
                   const std::function<bool()>& is_over) {
  const std::vector<uint64_t> order = transfer_order(manifest.chunks.size(), rounds);
  TransferWindow window(threads);
  std::mutex mutex;
  size_t next = 0;
  Status failure;
  const auto slice = [&](uint64_t bytes) {
    std::lock_guard lock(mutex);
    const size_t blocks = failure.ok() ? std::max<size_t>(1, bytes / manifest.chunk_bytes) : 0;
    std::vector<Digest> names;
    while (names.size() < blocks && next < order.size()) names.push_back(manifest.chunks[order[next++]]);
    return std::pair(std::move(names), blocks);
  };
  const auto store_slice = [&](uint64_t bytes) {
    const auto [names, blocks] = slice(bytes);
    if (names.empty()) return false;
    const Status status = is_over() ? absl::CancelledError("the merge went on without it") : blobs.store(names);
    if (status.ok()) return names.size() == blocks;
    std::lock_guard lock(mutex);
    if (failure.ok()) failure = status;
    return false;
  };
  run_together(threads, [&] {
    while (window.run(store_slice)) {
    }
  });
  return failure;
}

}  // namespace tessera::node
