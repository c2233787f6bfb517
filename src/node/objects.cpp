#include "tessera/node/objects.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "tessera/base/bytes.h"
#include "tessera/base/crypto.h"

namespace tessera::node {
namespace {

constexpr uint64_t kBatchBytes = 4u << 20;  // of chunks in memory twice during a transfer
constexpr uint32_t kLocalStateMagic = 0x534c5354;  // "TSLS"
constexpr uint64_t kLocalStateHeaderBytes = 44;

}  // namespace

Status ObjectWriter::add(std::string chunk) {
  TESSERA_CHECK(!chunk.empty() && chunk.size() <= manifest_.chunk_bytes);
  TESSERA_CHECK(manifest_.total_bytes % manifest_.chunk_bytes == 0);  // only the last may be shorter
  if (manifest_.chunks.size() == core::kMaxChunks) {
    return error(absl::StatusCode::kResourceExhausted, "an object of more than {} chunks of {} bytes", core::kMaxChunks,
                 manifest_.chunk_bytes);
  }
  manifest_.chunks.push_back(digest_of(chunk));
  manifest_.total_bytes += chunk.size();
  batch_bytes_ += chunk.size();
  batch_.push_back(std::move(chunk));
  return batch_bytes_ >= kBatchBytes ? flush() : ok_status();
}

Status ObjectWriter::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t taken = std::min<size_t>(bytes.size(), manifest_.chunk_bytes - partial_.size());
    if (partial_.empty()) partial_.reserve(taken);
    partial_ += bytes.substr(0, taken);
    bytes.remove_prefix(taken);
    if (partial_.size() == manifest_.chunk_bytes) TESSERA_RETURN_IF_ERROR(add(std::exchange(partial_, {})));
  }
  return ok_status();
}

Status ObjectWriter::flush() {
  if (!batch_.empty() && novelty_ == Novelty::kNew) {
    const auto first = manifest_.chunks.end() - static_cast<std::ptrdiff_t>(batch_.size());
    TESSERA_RETURN_IF_ERROR(blobs_.put_new(std::vector<Digest>(first, manifest_.chunks.end()), batch_));
  } else if (!batch_.empty()) {
    TESSERA_RETURN_IF_ERROR(blobs_.put(batch_).status());
  }
  batch_.clear();
  batch_bytes_ = 0;
  return ok_status();
}

StatusOr<Digest> ObjectWriter::finish() {
  if (!partial_.empty()) TESSERA_RETURN_IF_ERROR(add(std::exchange(partial_, {})));
  TESSERA_RETURN_IF_ERROR(flush());
  TESSERA_RETURN_IF_ERROR(blobs_.put({manifest_.encode()}).status());
  return manifest_.digest();
}

StatusOr<Digest> put_object(ports::BlobLink& blobs, std::string_view content, uint32_t chunk_bytes, Novelty novelty) {
  ObjectWriter writer(blobs, chunk_bytes, novelty);
  TESSERA_RETURN_IF_ERROR(writer.append(content));
  return writer.finish();
}

StatusOr<core::ObjectManifest> get_manifest(ports::BlobLink& blobs, const Digest& object) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> bytes, blobs.get({object}));
  auto manifest = core::ObjectManifest::decode(bytes.at(0));
  if (!manifest.ok()) return annotate(manifest.status(), "object " + object.brief());
  return manifest;
}

StatusOr<std::string> get_chunks(ports::BlobLink& blobs, const core::ObjectManifest& manifest, uint64_t first,
                                 uint64_t count) {
  if (first > manifest.chunks.size() || count > manifest.chunks.size() - first) {
    return error(absl::StatusCode::kOutOfRange, "chunks {} to {} of an object with {}", first, first + count,
                 manifest.chunks.size());
  }
  const uint64_t per_batch = std::max<uint64_t>(1, kBatchBytes / manifest.chunk_bytes);
  std::string content;
  content.reserve(std::min<uint64_t>(count * manifest.chunk_bytes, manifest.total_bytes));
  for (uint64_t at = first; at < first + count; at += per_batch) {
    const uint64_t end = std::min(first + count, at + per_batch);
    const std::vector<Digest> names(manifest.chunks.begin() + static_cast<int64_t>(at),
                                    manifest.chunks.begin() + static_cast<int64_t>(end));
    TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> chunks, blobs.get(names));
    for (uint64_t i = at; i < end; ++i) {
      const bool last = i + 1 == manifest.chunks.size();
      const uint64_t want = last ? manifest.total_bytes - i * uint64_t{manifest.chunk_bytes} : manifest.chunk_bytes;
      const std::string& chunk = chunks.at(i - at);
      if (chunk.size() != want) {
        return data_loss("chunk {} has {} bytes, its manifest promises {}", i, chunk.size(), want);
      }
      content += chunk;
    }
  }
  return content;
}

StatusOr<std::string> get_object(ports::BlobLink& blobs, const Digest& object, uint64_t expected_bytes,
                                 uint64_t limit_bytes) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, get_manifest(blobs, object));
  if (expected_bytes > 0 && manifest.total_bytes != expected_bytes) {
    return data_loss("object {} has {} bytes, expected {}", object.brief(), manifest.total_bytes, expected_bytes);
  }
  if (manifest.total_bytes > limit_bytes) {
    return data_loss("object {} has {} bytes, at most {} are taken", object.brief(), manifest.total_bytes, limit_bytes);
  }
  return get_chunks(blobs, manifest, 0, manifest.chunks.size());
}

Status check_object(ports::BlobLink& blobs, const Digest& object, uint64_t expected_bytes) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, get_manifest(blobs, object));
  if (manifest.total_bytes != expected_bytes) {
    return data_loss("object {} has {} bytes, expected {}", object.brief(), manifest.total_bytes, expected_bytes);
  }
  const uint64_t per_batch = std::max<uint64_t>(1, kBatchBytes / manifest.chunk_bytes);
  for (uint64_t at = 0; at < manifest.chunks.size(); at += per_batch) {
    TESSERA_RETURN_IF_ERROR(
        get_chunks(blobs, manifest, at, std::min<uint64_t>(per_batch, manifest.chunks.size() - at)).status());
  }
  return ok_status();
}

std::string_view bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::vector<float> values_of(std::string_view bytes) {
  TESSERA_CHECK(bytes.size() % sizeof(float) == 0);
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::string encode_stage_state(const std::vector<float>& base, const std::vector<float>& momentum) {
  std::string bytes;
  bytes.reserve((base.size() + momentum.size()) * sizeof(float));
  bytes += bytes_of(base);
  bytes += bytes_of(momentum);
  return bytes;
}

StatusOr<core::ObjectManifest> list_stage_state(const std::vector<float>& base, const std::vector<float>& momentum) {
  return core::make_manifest(encode_stage_state(base, momentum));
}

StatusOr<Digest> name_stage_state(const std::vector<float>& base, const std::vector<float>& momentum) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, list_stage_state(base, momentum));
  return manifest.digest();
}

namespace {

std::string local_state_header(const core::LocalState& state) {
  ByteWriter writer;
  writer.number(kLocalStateMagic);
  writer.number(uint32_t{2});
  writer.number(static_cast<uint64_t>(state.masters.size()));
  writer.number(static_cast<uint64_t>(state.gradient.size()));
  writer.number(static_cast<uint64_t>(state.residual.size()));
  writer.number(state.optimizer_steps);
  writer.number(state.gradient_microbatches);
  return writer.take();
}

std::array<const std::vector<float>*, 5> local_state_values(const core::LocalState& state) {
  return {&state.masters, &state.first_moment, &state.second_moment, &state.gradient, &state.residual};
}

}  // namespace

std::string encode_local_state(const core::LocalState& state) {
  std::string bytes = local_state_header(state);
  for (const std::vector<float>* values : local_state_values(state)) bytes += bytes_of(*values);
  return bytes;
}

StatusOr<Digest> put_local_state(ports::BlobLink& blobs, const core::LocalState& state, Novelty novelty) {
  ObjectWriter writer(blobs, core::kMaxChunkBytes, novelty);
  TESSERA_RETURN_IF_ERROR(writer.append(local_state_header(state)));
  for (const std::vector<float>* values : local_state_values(state)) TESSERA_RETURN_IF_ERROR(writer.append(bytes_of(*values)));
  return writer.finish();
}

StatusOr<core::LocalState> decode_local_state(std::string_view bytes) {
  ByteReader reader(bytes);
  const auto magic = reader.number<uint32_t>();
  const auto version = reader.number<uint32_t>();
  const auto count = reader.number<uint64_t>();
  const auto gradient_count = reader.number<uint64_t>();
  const auto residual_count = reader.number<uint64_t>();
  core::LocalState state;
  state.optimizer_steps = reader.number<uint64_t>();
  state.gradient_microbatches = reader.number<uint32_t>();
  if (!reader.ok() || magic != kLocalStateMagic || version != 2) return data_loss("not a miner's local state of version 2");
  const uint64_t limit = reader.remaining() / sizeof(float);
  if (count > limit || (gradient_count != 0 && gradient_count != count) ||
      (residual_count != 0 && residual_count != count) ||
      reader.remaining() != (3 * count + gradient_count + residual_count) * sizeof(float)) {
    return data_loss("a local state of {} values has {} bytes behind its header", count, reader.remaining());
  }
  state.masters = values_of(reader.raw(count * sizeof(float)));
  state.first_moment = values_of(reader.raw(count * sizeof(float)));
  state.second_moment = values_of(reader.raw(count * sizeof(float)));
  state.gradient = values_of(reader.raw(gradient_count * sizeof(float)));
  state.residual = values_of(reader.raw(residual_count * sizeof(float)));
  return state;
}

StatusOr<core::LocalState> get_local_state(ports::BlobLink& blobs, const Digest& object, uint64_t values) {
  const uint64_t longest = kLocalStateHeaderBytes + 5 * values * sizeof(float);
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, get_object(blobs, object, 0, longest));
  TESSERA_ASSIGN_OR_RETURN(core::LocalState state, decode_local_state(bytes));
  if (state.masters.size() != values) {
    return data_loss("the miner's own state has {} values, its stage has {}", state.masters.size(), values);
  }
  if (state.gradient.empty() != (state.gradient_microbatches == 0)) {
    return data_loss("the miner's own state has {} values of a gradient of {} microbatches", state.gradient.size(),
                     state.gradient_microbatches);
  }
  return state;
}

}  // namespace tessera::node
