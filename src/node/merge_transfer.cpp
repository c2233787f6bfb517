#include "tessera/node/merge_transfer.h"

#include <algorithm>
#include <cmath>

#include "tessera/base/crypto.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/objects.h"

namespace tessera::node {

StatusOr<std::vector<Digest>> KeptBlobs::put(const std::vector<std::string>& blobs) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<Digest> names, link_.put(blobs));
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < blobs.size() && i < names.size(); ++i) keep(names[i], blobs[i]);
  return names;
}

void KeptBlobs::keep(const Digest& name, const std::string& blob) {
  if (bytes_ + blob.size() > limit_bytes_) return;
  if (kept_.emplace(name, blob).second) bytes_ += blob.size();
}

StatusOr<std::vector<std::string>> KeptBlobs::get(const std::vector<Digest>& digests) {
  std::vector<std::string> contents(digests.size());
  std::vector<Digest> missing;
  std::vector<size_t> places;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < digests.size(); ++i) {
      if (const auto kept = kept_.find(digests[i]); kept != kept_.end()) {
        contents[i] = kept->second;
      } else {
        missing.push_back(digests[i]);
        places.push_back(i);
      }
    }
  }
  if (missing.empty()) return contents;
  TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> fetched, link_.get(missing));
  if (digests.size() == 1) {
    std::lock_guard lock(mutex_);
    keep(missing.front(), fetched.front());
  }
  for (size_t i = 0; i < places.size(); ++i) contents[places[i]] = std::move(fetched.at(i));
  return contents;
}

bool KeptBlobs::has(const Digest& digest) const {
  std::lock_guard lock(mutex_);
  return kept_.count(digest) > 0;
}

void KeptBlobs::begin(uint64_t limit_bytes) {
  std::lock_guard lock(mutex_);
  kept_.clear();
  bytes_ = 0;
  limit_bytes_ = limit_bytes;
}

StatusOr<DeltaUpload> upload_delta(ports::BlobLink& blobs, const core::MergeSpec& merge, const std::vector<float>& base,
                                   const std::vector<float>& snapshot, const std::vector<float>& residual) {
  const Codec format = merge.upload_format;
  const uint64_t block = merge.block_values;
  ObjectWriter writer(blobs, static_cast<uint32_t>(kernels::merge_block_bytes(format, block)));
  DeltaUpload upload;
  if (format != Codec::kFp32) upload.residual.resize(base.size());
  std::vector<float> delta;
  for (uint64_t first = 0; first < base.size(); first += block) {
    const uint64_t count = std::min<uint64_t>(block, base.size() - first);
    delta.resize(count);
    for (uint64_t i = 0; i < count; ++i) {
      delta[i] = base[first + i] - snapshot[first + i];
      if (!residual.empty()) delta[i] += residual[first + i];
    }
    const kernels::MergeRun run{format, count, block};
    std::string bytes(kernels::merge_run_bytes(format, count, block), '\0');
    kernels::merge_encode_cpu({.run = run,
                               .input = delta.data(),
                               .first_block = first / block,
                               .payload = reinterpret_cast<uint8_t*>(bytes.data())});
    if (!upload.residual.empty()) {
      float* left = upload.residual.data() + first;
      kernels::merge_decode_cpu(
          {.run = run, .payload = reinterpret_cast<const uint8_t*>(bytes.data()), .assign = true, .sum = left});
      for (uint64_t i = 0; i < count; ++i) {
        left[i] = delta[i] - left[i];
        if (!std::isfinite(left[i])) left[i] = 0;
      }
    }
    TESSERA_RETURN_IF_ERROR(writer.add(std::move(bytes)));
  }
  TESSERA_ASSIGN_OR_RETURN(upload.object, writer.finish());
  return upload;
}

StatusOr<std::vector<float>> fetch_upload(ports::BlobLink& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                          const Digest& object) {
  const kernels::MergeRun run{merge.upload_format, stage_values, merge.block_values};
  const uint64_t bytes = kernels::merge_run_bytes(run.format, run.values, run.block_values);
  TESSERA_ASSIGN_OR_RETURN(const std::string payload, get_object(blobs, object, bytes));
  std::vector<float> delta(stage_values);
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

namespace {

// The bytes of one copy of a shard, checked against the shard's digest.
StatusOr<std::string> open_copy(ports::BlobLink& blobs, const core::ResultCopy& copy, const Digest& result,
                                uint64_t block_bytes, uint64_t total_bytes) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, get_manifest(blobs, copy.object));
  if (manifest.total_bytes != total_bytes || manifest.chunk_bytes != block_bytes) {
    return data_loss("a copy of a shard has {} bytes in chunks of {}, not {} in chunks of {}", manifest.total_bytes,
                     manifest.chunk_bytes, total_bytes, block_bytes);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string sealed, get_chunks(blobs, manifest, 0, manifest.chunks.size()));
  std::string bytes;
  bytes.reserve(sealed.size());
  uint64_t number = 0;
  for (uint64_t at = 0; at < sealed.size(); at += block_bytes) {
    std::string block = sealed.substr(at, block_bytes);
    apply_keystream(copy.token, number++, &block);
    bytes += block;
  }
  if (digest_of(bytes) != result) return data_loss("copy {} of a shard is not what its owner committed", copy.object.brief());
  return bytes;
}

}  // namespace

StatusOr<std::vector<float>> fetch_mean(KeptBlobs& blobs, const core::MergeSpec& merge, uint64_t stage_values,
                                        const std::vector<core::ShardResult>& results, const RemakeShard& remake) {
  const Codec format = merge.result_format;
  const uint64_t block = merge.block_values;
  std::vector<float> mean(stage_values);
  uint64_t covered = 0;
  for (const core::ShardResult& result : results) {
    const uint64_t first = result.first_block * block;
    const uint64_t end = std::min(stage_values, (result.first_block + result.block_count) * block);
    if (first != covered || end <= first) return data_loss("the merge's shards do not tile the stage");
    std::vector<core::ResultCopy> copies = result.copies;
    std::stable_partition(copies.begin(), copies.end(), [&](const auto& copy) { return blobs.has(copy.object); });
    const auto open = [&](const core::ResultCopy& copy) {
      return open_copy(blobs, copy, result.result, kernels::merge_block_bytes(format, block),
                       kernels::merge_run_bytes(format, end - first, block));
    };
    StatusOr<std::string> bytes = data_loss("a shard without copies");
    for (size_t i = 0; i < copies.size() && !bytes.ok(); ++i) bytes = open(copies[i]);
    // Or what its name leads to is no list of chunks, or too short a one.
    const bool is_bad = absl::IsDataLoss(bytes.status()) || absl::IsNotFound(bytes.status()) ||
                        absl::IsInvalidArgument(bytes.status()) || absl::IsOutOfRange(bytes.status());
    if (is_bad && remake) {
      TESSERA_ASSIGN_OR_RETURN(const core::ResultCopy made, remake(result));
      bytes = open(made);
    }
    if (!bytes.ok()) return bytes.status();
    kernels::merge_decode_cpu({.run = {format, end - first, block},
                               .payload = reinterpret_cast<const uint8_t*>(bytes->data()),
                               .assign = true,
                               .sum = mean.data() + first});
    covered = end;
  }
  if (covered != stage_values) return data_loss("the merge's shards cover {} of {} values", covered, stage_values);
  return mean;
}

}  // namespace tessera::node
